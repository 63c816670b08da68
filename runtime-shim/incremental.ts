// Incremental checkpoints: which earlier one pages are left to, and under which
// token the core's keeper notes what changes (capture/memory_tracking.h), or what
// to compare memory with for want of a keeper (capture/parent_pages.h).
import { randomBytes } from 'node:crypto';
import { isAbsolute, join, relative } from 'node:path';
import { FormatError, JsonReader, parseJson } from '../oci-spec/json.js';
import type { PageMap } from '../nativecore/index.js';
import { ImageSetReader, parentPages, type ParentPages } from './engine/index.js';
import type { OutputFile, ParentLink } from './image-output.js';
import { ImageInput } from './image-input.js';
import { StasisError } from './errors/index.js';

const kTrackingName = 'stasis-tracking.json';
const kVersion = 1;

export interface ParentCheckpoint extends ParentLink, Disposable {
  readonly images: ImageInput;
  /** "": nobody has kept note of changes since. */
  readonly token: string;
  /** Everything that it holds: whether its keeper lives is known to the core alone. */
  readonly pages: ParentPages;
}

/** `parentPath`: absolute, or relative to the new images as CRIU and runc have it. */
export function openParent(imagePath: string, parentPath: string): ParentCheckpoint {
  const link = isAbsolute(parentPath) ? relative(imagePath, parentPath) : parentPath;
  const directory = join(imagePath, link);
  const place = join(imagePath, '..');
  if (relative(place, directory).startsWith('..') || relative(imagePath, directory) === '') {
    throw new StasisError({
      code: 'USAGE',
      message: `cannot leave pages to ${directory}: a parent checkpoint lies below ${place}, beside the new one or in it`,
      subject: { path: directory },
      hint: 'give --parent-path a directory there, for example ../before, which is relative to --image-path',
    });
  }
  const images = new ImageInput(directory);
  try {
    return {
      link,
      digest: images.digest,
      images,
      token: readToken(images),
      pages: parentPages(new ImageSetReader(images)),
      [Symbol.dispose]: () => images[Symbol.dispose](),
    };
  } catch (error) {
    images[Symbol.dispose]();
    throw error;
  }
}

function readToken(images: ImageInput): string {
  const bytes = images.read(kTrackingName);
  if (bytes === undefined) return '';
  try {
    const document = new JsonReader(parseJson(Buffer.from(bytes).toString('utf8')));
    if (document.field('version').integer() !== kVersion) return '';
    const token = document.field('token').string();
    if (!/^[0-9a-f]{32}$/.test(token)) throw new FormatError('token', 'is none');
    return token;
  } catch (error) {
    throw new StasisError({
      code: 'IMAGE_CORRUPT',
      message: `cannot read the images: "${kTrackingName}": ${(error as Error).message}`,
      subject: { image: kTrackingName, path: images.directory },
      hint: 'make a new pre-dump',
      cause: error,
    });
  }
}

export function newTrackingToken(): string {
  return randomBytes(16).toString('hex');
}

export function trackingFile(token: string): OutputFile {
  return { name: kTrackingName, bytes: Buffer.from(`${JSON.stringify({ version: kVersion, token })}\n`) };
}

/** Undefined: note was kept of what has changed since the parent, or a process is new. */
export function comparisonRemark(pageMap: PageMap, parent: Pick<ParentCheckpoint, 'pages'>): string | undefined {
  const { tasks, comparedPages } = pageMap;
  const unnoted = tasks.filter(({ noted }) => !noted);
  const equal = unnoted.flatMap(({ unchangedRuns }) => unchangedRuns).reduce((sum, run) => sum + run.pageCount, 0n);
  const some = unnoted.length < tasks.length;
  if (unnoted.length === 0 || (some && comparedPages === 0n)) return undefined;
  const why = `no note was kept of what changed since the parent checkpoint${some ? `, in ${unnoted.length} of ${tasks.length} processes` : ''}`;
  return comparedPages === 0n
    ? `all memory was written: ${why}, and ${parent.pages.obstacle ?? 'there was nothing to compare with'}`
    : `${why}: ${equal} of ${comparedPages} pages that were compared with the parent's are equal, and were left to it`;
}
