// Test support: captures that were recorded once from real processes
// (page data left out), and what the tests tell the engine about the kernel.
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { messageCodes, type Capture, type Messages, type PageMap } from '../../nativecore/schema/messages.js';
import { makeCodec } from '../../oci-spec/protobuf/codec.js';
import { encodeImages, encodePageMaps, type EncodedImages } from './encode.js';
import type { ImageFile, ImageSource } from './image-set.js';
import type { CompileOptions, EncodeOptions, KernelFacts } from './options.js';

/** Recorded on one machine; see the targets of the same names in e2e. */
export type RecordedCapture = 'credentials' | 'family' | 'threads';

const fixtures = new URL('../../../../runtime-shim/engine/fixtures/', import.meta.url);
const kPageBytes = 4096n;

export function readCapture(name: RecordedCapture): Capture {
  const packed = readFileSync(new URL(`${name}.capture.gz`, fixtures));
  return makeCodec<Messages>(messageCodes).decode('stasis.capture.Capture', gunzipSync(packed));
}

export const encodeOptions: EncodeOptions = {
  externalMounts: new Map(),
  externalFiles: new Set(),
  externalNamespaces: new Map(),
  emptyNetNamespace: false,
  shellJob: false,
  tcp: 'fail',
  connectionLock: '',
  externalUnixSockets: false,
  rootfs: '',
  leaveRunning: false,
  cgroupPaths: new Map(),
};

/** The machine of the recordings: AMD, AVX-512, Linux 6.18. */
export const kernel: KernelFacts = {
  pageSize: kPageBytes,
  vdsoSpanBytes: 0x8000n,
  vdsoOffsetBytes: 0x6000n,
  vdsoDigest: '',
  userfaultfd: true,
  xsaveSizeBytes: 2432,
  mmapMinAddress: 65536n,
};

export const compileOptions: CompileOptions = {
  externalMounts: new Map(),
  inherited: new Map(),
  joinNamespaces: new Map(),
  tcp: 'fail',
  emptyNetNamespace: false,
  shellJob: false,
  kernel,
};

/** Page runs at the start of every writable private mapping: what the fixtures leave out. */
export function somePages(capture: Capture): PageMap {
  const tasks = capture.tasks
    .filter((task) => !task.zombie)
    .map((task, index) => ({
      hostPid: task.hostPid,
      pagesId: index + 1,
      runs: Buffer.from(task.smaps)
        .toString('latin1')
        .split('\n')
        .flatMap((line) => {
          const found = /^([0-9a-f]+)-[0-9a-f]+ .w.p/.exec(line);
          return found === null ? [] : [{ address: BigInt(`0x${found[1]}`), pageCount: 1n }];
        }),
      unchangedRuns: [],
      noted: false,
    }));
  return { tasks, timings: [], scannedPages: 0n, skippedZeroPages: 0n, comparedPages: 0n, shared: [], files: [] };
}

/** An image set in memory, page files included (all zeroes). */
export class MemoryImages implements ImageSource {
  readonly #files = new Map<string, Uint8Array>();
  readonly encoded: EncodedImages;

  constructor(capture: Capture, pages: PageMap = somePages(capture), options: EncodeOptions = encodeOptions) {
    this.encoded = encodeImages(capture, options);
    for (const file of [...this.encoded.files, ...encodePageMaps(capture, pages), this.encoded.inventory])
      this.put(file);
    for (const task of pages.tasks) {
      const count = task.runs.reduce((sum, run) => sum + run.pageCount, 0n);
      this.put({ name: `pages-${task.pagesId}.img`, bytes: new Uint8Array(Number(count * kPageBytes)) });
    }
  }

  /** Of an incremental checkpoint. */
  before: ImageSource | undefined;
  parent(): ImageSource | undefined {
    return this.before;
  }
  put(file: ImageFile): void {
    this.#files.set(file.name, file.bytes);
  }
  remove(name: string): void {
    this.#files.delete(name);
  }
  list(): readonly string[] {
    return [...this.#files.keys()];
  }
  read(name: string): Uint8Array | undefined {
    return this.#files.get(name);
  }
  sizeBytes(name: string): number | undefined {
    return this.#files.get(name)?.length;
  }
}

/** The golden text of that name; written anew by UPDATE_GOLDEN=1. */
export function golden(name: string, actual: string): string {
  const url = new URL(name, fixtures);
  if (process.env['UPDATE_GOLDEN'] === '1') writeFileSync(fileURLToPath(url), actual);
  return readFileSync(url, 'utf8');
}
