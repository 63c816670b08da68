// The addon's exports, typed. Read next to binding/module.cc: same order, same
// names; native-binding.test.ts compares the two.
import { findLocations } from './locations.js';

export interface ExitStatus {
  readonly code: number;
  /** Signal number, 0 if it exited. */
  readonly signal: number;
}

export interface NativeKernelFacts {
  readonly vdsoSpanBytes: number;
  readonly vdsoOffsetBytes: number;
  readonly vdso: Buffer;
  readonly userfaultfd: boolean;
  readonly xsaveSizeBytes: number;
  readonly pageSize: number;
  readonly pagemapScan: boolean;
  readonly kcmp: boolean;
  readonly pidfdGetfd: boolean;
  readonly clone3: boolean;
  /** XCR0. */
  readonly xfeatures: bigint;
  readonly timerRestoreIds: boolean;
  /** Soft and hard limit of each RLIMIT_*, in order of number. */
  readonly rlimits: readonly bigint[];
}

export interface ProgramStart {
  readonly words: readonly string[];
  readonly pid: number;
}

export interface NativeBinding {
  setChildSubreaper(enabled: boolean): void;
  waitForExit(hostPid: number): Promise<ExitStatus>;
  /** Returns if node has to give a standard stream back as it was: a terminal, or a pipe that it has written to. */
  exitAtOnce(status: number): void;
  /** False if somebody else holds the lock. */
  tryLock(ownFd: number): boolean;
  /** False if there is something at the new path already, which stays. */
  renameWithoutReplacing(oldPath: string, newPath: string): boolean;
  /** O_PATH descriptor of a path that is resolved without leaving the root; the caller closes it. */
  openInRoot(root: string, path: string): number;
  /** One packet of a SOCK_SEQPACKET socket; undefined if the other side has gone. Blocks. */
  receivePacket(ownFd: number): Buffer | undefined;
  /** The descriptors travel as SCM_RIGHTS and stay the caller's. */
  sendPacket(ownFd: number, bytes: Buffer, ownFds: readonly number[]): void;
  /** Of a message that is there already; undefined: there is none. The caller closes it. */
  receiveDescriptor(ownFd: number): number | undefined;
  /** Two connected packet sockets; the caller closes them. */
  socketPair(): readonly [number, number];
  /** Host pid of whoever made the socket pair. */
  peerPid(ownFd: number): number;
  /** Connected stream socket, accepted or not; the caller closes it. */
  connectUnix(path: string): number;
  /** Gives the disk back what has been read; false if the file system cannot. */
  punchHole(ownFd: number, offset: number, lengthBytes: number): boolean;
  /** Adds the hashes of the blocks of a page digest, from block `number` on, to a sum of 16 bytes. */
  addBlocks(sum: Buffer, number: number, bytes: Buffer): void;
  /** An extended attribute, links not followed; undefined if there is none. */
  getAttribute(path: string, name: string): Buffer | undefined;
  listAttributes(path: string): string[];
  /** Links not followed; false: the file system has none of this kind, or we may not. */
  setAttribute(path: string, name: string, value: Buffer): boolean;
  /** Mode 0600; false: we may not. */
  makeNode(path: string, kind: 'p' | 'c' | 'b', major: number, minor: number): boolean;
  /** A terminal's window gets the size of another's. */
  copyWindowSize(fromFd: number, toFd: number): void;
  loadCgroupDeviceProgram(instructions: Buffer): number;
  attachCgroupDeviceProgram(cgroupFd: number, programFd: number): void;
  getKernelFacts(): NativeKernelFacts;
  /** Onto the disk, all of them at once. */
  syncFiles(directoryFd: number, names: readonly string[]): Promise<void>;
  /** Those that came with the exec are no child's. */
  keepOwnDescriptors(): void;
  /** Returns in processes that are started from the image that is made of this one; `toldFd` hears that it waits. */
  awaitStart(toldFd: number): ProgramStart;
}

export const nativeBindingNames: readonly (keyof NativeBinding)[] = [
  'setChildSubreaper',
  'waitForExit',
  'exitAtOnce',
  'tryLock',
  'renameWithoutReplacing',
  'openInRoot',
  'receivePacket',
  'sendPacket',
  'receiveDescriptor',
  'socketPair',
  'peerPid',
  'connectUnix',
  'punchHole',
  'addBlocks',
  'getAttribute',
  'listAttributes',
  'setAttribute',
  'makeNode',
  'copyWindowSize',
  'loadCgroupDeviceProgram',
  'attachCgroupDeviceProgram',
  'getKernelFacts',
  'syncFiles',
  'keepOwnDescriptors',
  'awaitStart',
];

let binding: NativeBinding | undefined;

/** Loads the addon on first use: half of the verbs never need it. */
export function nativeBinding(): NativeBinding {
  binding ??= loadBinding(findLocations().addon);
  return binding;
}

/** Undefined: nothing has needed the addon until now. */
export const loadedBinding = (): NativeBinding | undefined => binding;

function loadBinding(path: string): NativeBinding {
  try {
    // Not require(): a program that starts from a snapshot has none for files.
    const loaded = { exports: {} };
    process.dlopen(loaded, path);
    return loaded.exports as NativeBinding;
  } catch (error) {
    throw new Error(
      `the addon ${path} cannot be loaded (${(error as Error).message.split('\n')[0]}); install stasis again`,
    );
  }
}
