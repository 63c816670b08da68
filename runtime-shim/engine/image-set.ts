// A set of image files in memory: written by encode, read by decode. What is
// on a disk or in an archive is the caller's business.
import type { ImageMessageName, ImageMessages } from '../../oci-spec/codecs.js';
import { ImageFormatError, ImageWriter, readImage, type ImageEntry } from '../../oci-spec/images/image-file.js';
import { imageKinds, type ImageKindName } from '../../oci-spec/images/magic.js';
import type { PartialMessage } from '../../oci-spec/protobuf/codec.js';
import { StasisError } from '../errors/index.js';

/** Name of the link from a checkpoint to the one that it leaves pages to. */
export const kParentName = 'parent';
const kParentPrefix = `${kParentName}/`;

export interface ImageFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export type MessageOf<Kind extends ImageKindName> = ImageMessages[(typeof imageKinds)[Kind]['message']];

/** "core", 12 -> "core-12.img"; service files have no suffix. */
export function imageFileName(kind: ImageKindName, id?: number | bigint | string): string {
  const stem = id === undefined ? kind : `${kind}-${id}`;
  return kind.startsWith('stats-') ? stem : `${stem}.img`;
}

export class ImageSetWriter {
  readonly #writers = new Map<string, ImageWriter>();
  readonly #raw = new Map<string, Uint8Array>();

  /** Appends an entry; the file begins to exist with its first entry. */
  add<Kind extends ImageKindName>(
    kind: Kind,
    id: number | bigint | string | undefined,
    message: PartialMessage<MessageOf<Kind>>,
    payload?: Uint8Array,
  ): void {
    this.addAs(kind, id, messageName(kind), message as never, payload);
  }

  /** As add, for an entry of another message type (pagemap_head). */
  addAs<Name extends ImageMessageName>(
    kind: ImageKindName,
    id: number | bigint | string | undefined,
    name: Name,
    message: PartialMessage<ImageMessages[Name]>,
    payload?: Uint8Array,
  ): void {
    const file = imageFileName(kind, id);
    let writer = this.#writers.get(file);
    if (writer === undefined) {
      writer = new ImageWriter(kind);
      this.#writers.set(file, writer);
    }
    writer.add(name, message, payload);
  }

  addRaw(name: string, bytes: Uint8Array): void {
    this.#raw.set(name, bytes);
  }

  files(): ImageFile[] {
    const files: ImageFile[] = [];
    for (const [name, writer] of this.#writers) files.push({ name, bytes: writer.bytes() });
    for (const [name, bytes] of this.#raw) files.push({ name, bytes });
    return files;
  }
}

function messageName(kind: ImageKindName): ImageMessageName {
  return imageKinds[kind].message;
}

/** Where image files come from: a directory, an archive, a fixture. Names are flat. */
export interface ImageSource {
  list(): readonly string[];
  /** The whole file, or undefined if there is none. */
  read(name: string): Uint8Array | undefined;
  sizeBytes(name: string): number | undefined;
  /** A part of a file that is too large to be read whole (page data); undefined if it is not there. */
  readRange?(name: string, offset: number, lengthBytes: number): Uint8Array | undefined;
  /** The checkpoint that this one leaves pages to; undefined if it names none. */
  parent?(): ImageSource | undefined;
}

/** Bytes that follow a message, by kind; the rest have none. */
const payloadLengths: Partial<Record<ImageKindName, (message: never, rest: number) => number>> = {
  'pipes-data': (message: { bytes: number }) => message.bytes,
  'fifo-data': (message: { bytes: number }) => message.bytes,
  'sk-queues': (message: { length: number }) => message.length,
  'ipcns-sem': (message: { nsems: number }) => (2 * message.nsems + 7) & ~7,
  'tcp-stream': (message: { inq_len: number; outq_len: number }) => message.inq_len + message.outq_len,
  'ghost-file': (_message: never, rest: number) => rest,
};

/** Reads images lazily, once, and distrusts every byte. */
export class ImageSetReader {
  readonly #source: ImageSource;
  readonly #cache = new Map<string, readonly ImageEntry[]>();
  /** null: looked for, and not there. */
  #parent: ImageSetReader | null | undefined;

  constructor(source: ImageSource) {
    this.#source = source;
  }

  /** All entries of an image; an absent file is an empty list. */
  entries<Kind extends ImageKindName>(
    kind: Kind,
    id?: number | bigint | string,
  ): readonly ImageEntry<(typeof imageKinds)[Kind]['message']>[] {
    const file = imageFileName(kind, id);
    let entries = this.#cache.get(file);
    if (entries === undefined) {
      const bytes = this.#source.read(file);
      entries = bytes === undefined ? [] : parse(kind, file, bytes);
      this.#cache.set(file, entries);
    }
    return entries as never;
  }

  messages<Kind extends ImageKindName>(kind: Kind, id?: number | bigint | string): MessageOf<Kind>[] {
    return this.entries(kind, id).map((entry) => entry.message) as never;
  }

  /** The one entry that must be there. */
  one<Kind extends ImageKindName>(kind: Kind, id?: number | bigint | string): MessageOf<Kind> {
    const found = this.maybe(kind, id);
    if (found === undefined) {
      const image = imageFileName(kind, id);
      throw new StasisError({
        code: 'IMAGE_MISSING',
        message: `cannot read the images: "${image}" is missing or empty`,
        subject: { image },
        hint: 'use a complete copy of the checkpoint',
      });
    }
    return found;
  }

  maybe<Kind extends ImageKindName>(kind: Kind, id?: number | bigint | string): MessageOf<Kind> | undefined {
    return this.messages(kind, id)[0];
  }

  raw(name: string): Uint8Array | undefined {
    return this.#source.read(name);
  }

  rawRange(name: string, offset: number, lengthBytes: number): Uint8Array | undefined {
    if (name.startsWith(kParentPrefix))
      return this.parent()?.rawRange(name.slice(kParentPrefix.length), offset, lengthBytes);
    return this.#source.readRange?.(name, offset, lengthBytes);
  }

  sizeBytes(name: string): number | undefined {
    if (name.startsWith(kParentPrefix)) return this.parent()?.sizeBytes(name.slice(kParentPrefix.length));
    return this.#source.sizeBytes(name);
  }

  /** Images that this set leaves pages to; undefined if there are none. */
  parent(): ImageSetReader | undefined {
    if (this.#parent === undefined) {
      const source = this.#source.parent?.();
      this.#parent = source === undefined ? null : new ImageSetReader(source);
    }
    return this.#parent ?? undefined;
  }

  list(): readonly string[] {
    return this.#source.list();
  }
}

function parse(kind: ImageKindName, file: string, bytes: Uint8Array): readonly ImageEntry[] {
  try {
    return readImage(kind, bytes, payloadLengths[kind]);
  } catch (error) {
    if (!(error instanceof ImageFormatError)) throw error;
    throw new StasisError({
      code: error.problem === 'version' ? 'IMAGE_VERSION' : 'IMAGE_CORRUPT',
      message: `cannot read the images: "${file}" ${error.message}`,
      subject: { image: file },
      hint: 'use another copy of the checkpoint',
      cause: error,
    });
  }
}
