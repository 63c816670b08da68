// What the engine is told by its caller, besides the capture or the images.
// Everything here is data; the engine looks nothing up by itself.

import type { TcpRule } from '../../oci-spec/tcp-rule.js';

export interface EncodeOptions {
  /** Mount point inside the target's root -> external key, for mounts that the restoring side provides. */
  readonly externalMounts: ReadonlyMap<string, string>;
  /** Pipes ("pipe:[4711]") and files whose other side stays outside and is inherited on restore. */
  readonly externalFiles: ReadonlySet<string>;
  /** Namespaces that the restoring side provides: kind ("net") -> external key ("extRootNetNS"). */
  readonly externalNamespaces: ReadonlyMap<string, string>;
  /** The content of an own network namespace is the restoring side's business (runc's --empty-ns network). */
  readonly emptyNetNamespace: boolean;
  /** Terminals of a session outside the tree are inherited on restore. */
  readonly shellJob: boolean;
  /** For connections whose other end is not in the tree. */
  readonly tcp: TcpRule;
  /** Of this checkpoint, in the name of the table that drops the packets of its connections; "": there is none. */
  readonly connectionLock: string;
  readonly externalUnixSockets: boolean;
  /** Host directory that is the target's root, for file paths in notes; "" if unknown. */
  readonly rootfs: string;
  readonly leaveRunning: boolean;
  /** Cgroup paths of the container ("" key on v2; "freezer" -> "/user/x" on v1): tasks below them keep relative paths. */
  readonly cgroupPaths: ReadonlyMap<string, string>;
}

export interface CompileOptions {
  /** Host path that becomes the root mount; undefined: tasks live in the caller's mount namespace. */
  readonly rootfs?: string;
  /** Empty host directory to assemble the mount tree in (its content is never seen by the target). */
  readonly yardDirectory?: string;
  /** External mount key -> host path. */
  readonly externalMounts: ReadonlyMap<string, string>;
  /** Those of its keys whose host path is no directory; given, missing mount points of external mounts are made. */
  readonly externalFileMounts?: ReadonlySet<string>;
  /** External name ("pipe:[4711]", "extRootNetNS", "tty[...]") -> descriptor number in the core process. */
  readonly inherited: ReadonlyMap<string, number>;
  /** Namespaces to join, kind ("ipc") -> descriptor number in the core process. */
  readonly joinNamespaces: ReadonlyMap<string, number>;
  /** Cgroup namespace wanted although the images have none, and so on: from the OCI spec; undefined: as in the images. */
  readonly newNamespaces?: ReadonlySet<string>;
  readonly emptyNetNamespace: boolean;
  readonly shellJob: boolean;
  /** For connections whose other end is not in the images. */
  readonly tcp: TcpRule;
  /** Private anonymous memory is filled while the tree runs. */
  readonly lazyPages?: boolean;
  /** /dev/userfaultfd, open in the core process: of use where the tasks may make no userfaultfd that serves system calls. */
  readonly userfaultfdDevice?: number;
  readonly kernel: KernelFacts;
}

/** What compile must know of the restoring kernel; measured by the caller, never a version number. */
export interface KernelFacts {
  readonly pageSize: bigint;
  /** Length in bytes of vvar, vvar_vclock and vdso together as ARCH_MAP_VDSO_64 maps them, and offset of the vdso in it. */
  readonly vdsoSpanBytes: bigint;
  readonly vdsoOffsetBytes: bigint;
  /** sha256 of the vdso's bytes; "" if unknown (not compared then). */
  readonly vdsoDigest: string;
  readonly userfaultfd: boolean;
  /** Where transparent huge pages are given: to all memory, to what MADV_HUGEPAGE asks for; undefined: nowhere. */
  readonly hugePages?: 'all' | 'advised';
  readonly xsaveSizeBytes: number;
  /** XCR0; undefined: what the size allows. */
  readonly xfeatures?: bigint;
  /** Capabilities that a restored task can have at most (the engine's own bounding and permitted set); undefined: all. */
  readonly capabilities?: bigint;
  /** The engine's own limits (RLIMIT_* 0..15), which its children inherit; undefined: not known. */
  readonly rlimits?: readonly { readonly cur: bigint; readonly max: bigint }[];
  /** Can POSIX timers be given their ids (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15)? undefined: yes. */
  readonly timerRestoreIds?: boolean;
  /** The engine's own oom_score_adj, which its children inherit. */
  readonly oomScoreAdjust?: number;
  /** Pages shorter than this cannot be mapped (vm.mmap_min_addr). */
  readonly mmapMinAddress: bigint;
}
