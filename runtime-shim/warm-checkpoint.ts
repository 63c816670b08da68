// The poststart hook's work, when nobody waits for it any more: wait until the
// program is warm, then take a checkpoint that leaves it running, to where the
// next `create` looks for it.
//
//   Undo            the temporary archive or directory is removed
//   If we die here  the container runs on, as with every checkpoint; what was begun keeps a name that tells so
import {
  closeSync,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { FormatError, JsonReader, parseJson } from '../oci-spec/json.js';
import { listensAt, parseWarmCondition, warmAnnotation, type WarmCondition } from '../oci-spec/warm-start.js';
import { compressionOfName } from './archive/compression.js';
import { privateName } from './archive/private-directory.js';
import { checkpointContainer } from './checkpoint.js';
import { checkpointDefaults, type CheckpointResult } from './checkpoint-request.js';
import { containerStatus, findStateRoot, isAlive, readProcess, readText } from './container/index.js';
import { StasisError, fileError } from './errors/index.js';

const kDefaultDeadlineSeconds = 600;
const kIntervalMs = 100;
/** Of output without a line end that is looked at. */
const kLongestLineBytes = 1 << 16;

export interface HookedContainer {
  readonly id: string;
  readonly hostPid: number;
  readonly bundle: string;
  readonly annotations: Readonly<Record<string, string>>;
}

export interface WarmCheckpoint extends HookedContainer {
  /** Absolute. */
  readonly target: string;
  readonly condition: WarmCondition;
  readonly deadlineSeconds: number;
}

/** The state that the runtime gives its hooks. Throws USAGE for anything else. */
export function parseHookState(text: string): HookedContainer {
  try {
    const state = new JsonReader(parseJson(text));
    return {
      id: state.field('id').string(),
      hostPid: state.field('pid').integer(),
      bundle: state.field('bundle').string(),
      annotations: state.field('annotations').absent ? {} : state.field('annotations').stringMap(),
    };
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw new StasisError({
      code: 'USAGE',
      message: `cannot run as a hook: standard input is not the state of a container: ${error.message}`,
      hint: 'configure "stasis hook" as a poststart hook',
      cause: error,
    });
  }
}

/** What the annotations ask for; undefined if they ask for nothing. */
export function warmCheckpointOf(container: HookedContainer): WarmCheckpoint | undefined {
  const { id, annotations } = container;
  const when = annotations[warmAnnotation.checkpointWhen];
  if (when === undefined) return undefined;
  const refuse = (problem: string): StasisError =>
    new StasisError({
      code: 'USAGE',
      message: `cannot checkpoint container ${JSON.stringify(id)} when it is warm: ${problem}`,
    });
  const target = annotations[warmAnnotation.restore] ?? '';
  if (!target.startsWith('/'))
    throw refuse(`${warmAnnotation.restore} is ${JSON.stringify(target)}, and no absolute path`);
  const deadline = annotations[warmAnnotation.deadline] ?? String(kDefaultDeadlineSeconds);
  if (!/^\d{1,9}$/.test(deadline))
    throw refuse(`${warmAnnotation.deadline} is ${JSON.stringify(deadline)}, and no number of seconds`);
  try {
    return { ...container, target, condition: parseWarmCondition(when), deadlineSeconds: Number(deadline) };
  } catch (error) {
    throw error instanceof FormatError ? refuse(error.message) : error;
  }
}

/** undefined: there is a checkpoint already, or the container has ended before it was warm. */
export async function checkpointWhenWarm(
  request: WarmCheckpoint & { readonly root: string | undefined; readonly signal: AbortSignal },
): Promise<CheckpointResult | undefined> {
  const { id, hostPid, target, signal } = request;
  if (existsSync(target)) return undefined;
  const root = request.root ?? findStateRoot(id, process.env);
  const startTicks = readProcess(hostPid)?.startTicks;
  const isWarm = watch(request);
  const end = performance.now() + request.deadlineSeconds * 1000;
  let started = false;
  for (;;) {
    if (startTicks === undefined || !isAlive(hostPid, startTicks)) return undefined;
    started ||= containerStatus(root, id) === 'running';
    if (started && isWarm()) break;
    if (performance.now() >= end) throw tooLate(request, started);
    await pause(kIntervalMs, undefined, { signal });
  }
  if (existsSync(target)) return undefined;
  const common = { ...checkpointDefaults, root, id, leaveRunning: true, workPath: undefined, signal, encode: plain };
  if (/\.(tar|tgz|tzst|tar\.[a-z0-9]+)$/.test(target)) {
    return await checkpointContainer({
      ...common,
      imagePath: target,
      archive: {
        target: { file: target, compression: compressionOfName(target) },
        ignoreRootfs: false,
        lower: undefined,
        image: '',
      },
    });
  }
  return await intoDirectory(target, async (imagePath) => await checkpointContainer({ ...common, imagePath }));
}

const plain = { shellJob: false, externalUnixSockets: false };

/** Postcondition: `target` is a whole image directory, or not there. */
async function intoDirectory<T>(target: string, fill: (directory: string) => Promise<T>): Promise<T> {
  const temporary = join(dirname(target), privateName(basename(target)));
  try {
    mkdirSync(temporary, { mode: 0o700 });
    const result = await fill(temporary);
    renameSync(temporary, target);
    return result;
  } catch (error) {
    throw error instanceof StasisError ? error : fileError(`cannot write the images ${target}`, target, error);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

function tooLate({ id, condition, deadlineSeconds, annotations }: WarmCheckpoint, started: boolean): StasisError {
  const wanted = annotations[warmAnnotation.checkpointWhen];
  return new StasisError({
    code: 'ENVIRONMENT',
    message: `cannot checkpoint container ${JSON.stringify(id)} when it is warm: ${
      started ? `${wanted} has not come true` : 'it was not started'
    } within ${deadlineSeconds} s`,
    subject: { container: id },
    hint:
      condition.kind === 'log'
        ? `name the file of its output as ${warmAnnotation.log}, or give it longer with ${warmAnnotation.deadline}`
        : `give it longer with ${warmAnnotation.deadline}`,
  });
}

/** What is asked again and again, once the container has been started. */
function watch(request: WarmCheckpoint): () => boolean {
  const { condition, hostPid } = request;
  switch (condition.kind) {
    case 'tcp':
      // Looked up, never connected to: the program is not to notice.
      return () =>
        ['tcp', 'tcp6'].some((table) => listensAt(readText(`/proc/${hostPid}/net/${table}`), condition.port));
    case 'file':
      return () => lstatSync(`/proc/${hostPid}/root${condition.path}`, { throwIfNoEntry: false }) !== undefined;
    case 'log': {
      const log = new GrowingLog(request);
      return () => log.hasNew(condition.pattern);
    }
    case 'seconds': {
      let begin: number | undefined;
      return () => performance.now() - (begin ??= performance.now()) >= condition.seconds * 1000;
    }
  }
}

/** The lines of a container's output, in whichever file its manager keeps it. */
class GrowingLog {
  readonly #candidates: readonly string[];
  #offset = 0;
  #rest = '';

  constructor({ id, hostPid, bundle, annotations }: HookedContainer) {
    const named = annotations[warmAnnotation.log] ?? annotations['io.kubernetes.cri-o.LogPath'];
    this.#candidates =
      named !== undefined
        ? [named]
        : // podman, docker; or the file that is standard output itself.
          [join(bundle, 'ctr.log'), `/var/lib/docker/containers/${id}/${id}-json.log`, `/proc/${hostPid}/fd/1`];
  }

  hasNew(pattern: RegExp): boolean {
    const path = this.#candidates.find((file) => statSync(file, { throwIfNoEntry: false })?.isFile() === true);
    if (path === undefined) return false;
    const fd = openSync(path, 'r');
    try {
      // Rotated: from its beginning.
      if (fstatSync(fd).size < this.#offset) this.#offset = 0;
      const buffer = Buffer.alloc(kLongestLineBytes);
      for (;;) {
        const length = readSync(fd, buffer, 0, buffer.length, this.#offset);
        if (length === 0) return false;
        this.#offset += length;
        const lines = (this.#rest + buffer.toString('utf8', 0, length)).split('\n');
        this.#rest = lines.at(-1)!.slice(-kLongestLineBytes);
        if (lines.some((line) => pattern.test(messageOf(line)))) return true;
      }
    } finally {
      closeSync(fd);
    }
  }
}

/** What the program wrote: podman and CRI put "2026-11-26T13:00:00.0+00:00 stdout F " before it. */
function messageOf(line: string): string {
  return line.replace(/^\d{4}-\d\d-\d\dT\S+ (stdout|stderr) [FP] /, '');
}
