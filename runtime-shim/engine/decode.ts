// Images to a model: reads what every restore needs, and distrusts it. Rooms
// read their own images from the model's set.
import { createHash } from 'node:crypto';
import type { core_entry, fdinfo_entry, pstree_entry } from '../../oci-spec/images/messages.js';
import { StasisError } from '../errors/index.js';
import type { ImageModel, ImageTask } from './compile-context.js';
import { ImageSetReader, type ImageSource } from './image-set.js';
import { taskState } from './resources/task.js';

const kImageVersion = 2;
const kMachineX86 = 1;
/** PID_MAX_LIMIT: no more tasks can exist at once */
const kMaximalTasks = 4 * 1024 * 1024;
/** What a restore plan can hold (executor/validate_plan.cc). */
const kMaximalThreads = 65536;

export function decodeImages(source: ImageSource): ImageModel {
  const set = new ImageSetReader(source);
  const inventory = set.one('inventory');
  if (inventory.img_version !== kImageVersion) {
    throw new StasisError({
      code: 'IMAGE_VERSION',
      message: `cannot read the images: they are of format version ${inventory.img_version}, wanted ${kImageVersion}`,
      subject: { image: 'inventory.img' },
      hint: 'make the checkpoint with a current version',
    });
  }
  if (inventory.pre_dump_mode !== undefined) {
    throw new StasisError({
      code: 'IMAGE_FEATURE_UNSUPPORTED',
      message: 'cannot read the images: they are of a pre-dump, which has the memory only',
      subject: { image: 'inventory.img' },
      hint: 'give the directory of the checkpoint that was made with this one as --parent-path',
    });
  }
  if (inventory.fdinfo_per_id !== true) throw corrupt('inventory.img', 'names descriptor tables by pid (too old)');
  const tree = set.messages('pstree');
  checkTree(tree);
  const files = new Map(set.messages('files').map((file) => [file.id, file]));
  return {
    set,
    inventory,
    tasks: tree.map((entry) => decodeTask(set, entry)),
    files,
    digest: digestOf(set),
  };
}

function checkTree(tree: readonly pstree_entry[]): void {
  const [root] = tree;
  const image = 'pstree.img';
  if (root === undefined) throw corrupt(image, 'has no processes');
  const seen = new Set<number>();
  let threads = 0;
  for (const task of tree) {
    if (task !== root && !seen.has(task.ppid))
      throw corrupt(image, `has pid ${task.pid} before its parent ${task.ppid}`);
    if (task.pid === 0 || task.pid >= kMaximalTasks) throw corrupt(image, `has an impossible pid (${task.pid})`);
    seen.add(task.pid);
    threads += Math.max(1, task.threads.length);
  }
  if (threads > kMaximalThreads) throw corrupt(image, `has ${threads} threads, ${kMaximalThreads} is the most`);
  const ids = tree.flatMap(threadsOf);
  if (new Set(ids).size !== ids.length || seen.size !== tree.length) throw corrupt(image, 'has a number twice');
  for (const task of tree)
    if (!threadsOf(task).includes(task.pid)) throw corrupt(image, `has pid ${task.pid} without its first thread`);
}

/** Of a zombie there is nothing or, by CRIU, a thread 0. */
function threadsOf({ pid, threads }: pstree_entry): readonly number[] {
  return threads.length === 0 || (threads.length === 1 && threads[0] === 0) ? [pid] : threads;
}

function decodeTask(set: ImageSetReader, entry: pstree_entry): ImageTask {
  const { pid } = entry;
  const core = readCore(set, pid);
  if (core.tc === undefined) throw corrupt(`core-${pid}.img`, 'has no process part');
  const zombie = core.tc.task_state === taskState.dead;
  if (zombie)
    return { pid, entry, core, zombie, ids: undefined, mm: undefined, fs: undefined, fds: [], threads: new Map() };
  const ids = set.maybe('ids', pid) ?? core.ids;
  if (ids === undefined) throw missing(`ids-${pid}.img`);
  const threads = new Map<number, core_entry>([[pid, core]]);
  for (const tid of threadsOf(entry)) if (tid !== pid) threads.set(tid, readCore(set, tid));
  const fds: fdinfo_entry[] = set.messages('fdinfo', ids.files_id);
  return { pid, entry, core, zombie, ids, mm: set.one('mm', pid), fs: set.one('fs', pid), fds, threads };
}

function readCore(set: ImageSetReader, tid: number): core_entry {
  const core = set.one('core', tid);
  if (core.mtype !== kMachineX86) {
    throw new StasisError({
      code: 'IMAGE_FEATURE_UNSUPPORTED',
      message: `cannot restore: the checkpoint was made on another kind of machine (type ${core.mtype})`,
      subject: { image: `core-${tid}.img` },
      hint: 'restore on a machine of the same architecture',
    });
  }
  return core;
}

/** Which images these are: the bytes of the inventory and of the process tree. */
function digestOf(set: ImageSetReader): string {
  const hash = createHash('sha256');
  for (const name of ['inventory.img', 'pstree.img']) hash.update(set.raw(name) ?? '');
  return `sha256:${hash.digest('hex')}`;
}

function corrupt(image: string, problem: string): StasisError {
  return new StasisError({
    code: 'IMAGE_CORRUPT',
    message: `cannot read the images: "${image}" ${problem}`,
    subject: { image },
    hint: 'use another copy of the checkpoint',
  });
}

function missing(image: string): StasisError {
  return new StasisError({
    code: 'IMAGE_MISSING',
    message: `cannot read the images: "${image}" is missing or empty`,
    subject: { image },
    hint: 'use a complete copy of the checkpoint',
  });
}
