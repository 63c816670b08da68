// Details of the restore sequence.
import { createHash } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { nativeBinding, type Plan, type Timing } from '../nativecore/index.js';
import type { PartialMessage } from '../oci-spec/protobuf/codec.js';
import { readText } from './container/index.js';
import { encodeStats, ProcStatus, stepAt, timingUs, type KernelFacts } from './engine/index.js';
import { fileError, type NativeFailure } from './errors/index.js';
import type { LogFile } from './core-session.js';

/** Measured on this process and this kernel, never taken from a version number. */
export function kernelFacts(): KernelFacts {
  const native = nativeBinding().getKernelFacts();
  const status = new ProcStatus(Buffer.from(readText('/proc/self/status')));
  return {
    pageSize: BigInt(native.pageSize),
    vdsoSpanBytes: BigInt(native.vdsoSpanBytes),
    vdsoOffsetBytes: BigInt(native.vdsoOffsetBytes),
    vdsoDigest: createHash('sha256').update(native.vdso).digest('hex'),
    userfaultfd: native.userfaultfd,
    ...hugePages(),
    xsaveSizeBytes: native.xsaveSizeBytes,
    xfeatures: native.xfeatures,
    timerRestoreIds: native.timerRestoreIds,
    // Not more than we have ourselves: a task is born with our bounding set.
    capabilities: status.mask('CapBnd') & status.mask('CapPrm'),
    rlimits: pairs(native.rlimits),
    oomScoreAdjust: Number(readText('/proc/self/oom_score_adj').trim() || '0'),
    mmapMinAddress: BigInt(readText('/proc/sys/vm/mmap_min_addr').trim() || '65536'),
  };
}

/** admin-guide/mm/transhuge.rst: "always [madvise] never"; the file is missing where the kernel has none. */
function hugePages(): Pick<KernelFacts, 'hugePages'> {
  const chosen = /\[(\w+)\]/.exec(readText('/sys/kernel/mm/transparent_hugepage/enabled'))?.[1];
  if (chosen === 'always') return { hugePages: 'all' };
  return chosen === 'madvise' ? { hugePages: 'advised' } : {};
}

function pairs(limits: readonly bigint[]): { readonly cur: bigint; readonly max: bigint }[] {
  return limits.flatMap((cur, at) => (at % 2 === 0 ? [{ cur, max: limits[at + 1] ?? cur }] : []));
}

/** "pid 17: openat2 (file[9])": what a position in the plan is about. */
export function describePlanStep(
  plan: PartialMessage<Plan>,
  position: NonNullable<NativeFailure['position']>,
): string | undefined {
  const task = plan.tasks?.[position.task];
  const steps = task?.phases?.find(({ phase }) => phase === position.phase)?.steps;
  const step = stepAt(steps ?? [], position.step);
  if (task === undefined || step === undefined) return undefined;
  const from = step.from === undefined || step.from === '' ? '' : ` for ${step.from}`;
  const note = step.note === undefined || step.note === '' ? '' : ` (${step.note})`;
  return `step ${step.op}${from}${note} of ${task.from ?? `task ${position.task}`}`;
}

/** The container runs by then: a failure here is told in the log only. */
export function writeRestoreStats(
  directory: string,
  plan: PartialMessage<Plan>,
  timings: readonly Timing[],
  log: LogFile,
): void {
  const pages = (plan.tasks ?? [])
    .flatMap((task) => task.fills ?? [])
    .reduce((sum, fill) => sum + (fill.pageCount ?? 0n), 0n);
  const file = encodeStats({
    restore: {
      forkingUs: timingUs(timings, 'clone'),
      restoreUs: timings.reduce((sum, { startNs, endNs }) => sum + Number((endNs - startNs) / 1000n), 0),
      pagesRestored: pages,
    },
  });
  const path = join(directory, file.name);
  try {
    rmSync(path, { force: true });
    writeFileSync(path, file.bytes, { mode: 0o600 });
  } catch (error) {
    log.write([fileError('cannot write the statistics', path, error).message]);
  }
}
