// The second half of every restore: a plan is executed, published while all
// its tasks are parked, and released.
import type { ExecuteRequest, Parked, Plan, Timing } from '../nativecore/index.js';
import type { PartialMessage } from '../oci-spec/protobuf/codec.js';
import { CoreSession, type LogFile } from './core-session.js';
import type { ImageInput } from './image-input.js';
import type { OnProgress, PhaseClock } from './phase-clock.js';
import { describePlanStep } from './restore-steps.js';

export interface PlanExecution {
  readonly plan: PartialMessage<Plan>;
  readonly images: ImageInput;
  readonly log: LogFile;
  readonly deadlineMs: number;
  /** Private memory is filled by a page process. */
  readonly lazyPages?: boolean;
  /** What the core is told besides the plan: cgroups, id maps, what to undo. */
  readonly orders?: PartialMessage<ExecuteRequest>;
  /** Called while the core works; a failure rolls the restore back. */
  readonly meanwhile?: () => void;
  /** Tells the world of the tree while it waits; a failure rolls the restore back. */
  readonly publish?: (parked: Parked) => Promise<void>;
  /** Not released, but left waiting, without us, for whoever opens orders.startFifo. */
  readonly keep?: boolean;
  readonly clock?: PhaseClock;
}

/** The core that a plan is for; its failures name the plan's steps. */
export function startExecutor(options: {
  readonly goal: string;
  readonly log: LogFile;
  readonly images: ImageInput;
  readonly plan: PartialMessage<Plan>;
  readonly externals?: readonly number[];
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: OnProgress | undefined;
}): CoreSession {
  const { goal, log, images, plan, externals = [], signal, onProgress } = options;
  return new CoreSession({
    subcommand: 'execute',
    goal,
    log,
    imagesFd: images.fd,
    externals,
    onProgress,
    describeStep: (position) => describePlanStep(plan, position),
    ...(signal === undefined ? {} : { signal }),
  });
}

/** Postcondition: the tree runs (or waits, if it is kept), or, if this throws, the core has taken it back. */
export async function executePlan(
  core: CoreSession,
  execution: PlanExecution,
): Promise<{ readonly parked: Parked; readonly timings: readonly Timing[] }> {
  const { plan, images, log, deadlineMs, orders, publish, keep = false, clock } = execution;
  clock?.enter('execute');
  const lazyPages = execution.lazyPages === true;
  const digests = (plan.pageFiles ?? []).map((name) => images.entryOf(name));
  const pageFileDigests = digests.map((entry) => entry?.pageDigest ?? (lazyPages ? entry?.sha256 : undefined) ?? '');
  core.send({ execute: { version: 1, plan, deadlineMs, lazyPages, pageFileDigests, ...orders } });
  const workMeanwhile = async (): Promise<void> => {
    execution.meanwhile?.();
    // Altered images must not be released, but need not hold up the filling.
    await images.verifyRest(comparedByCore(plan, images, lazyPages));
  };
  const meanwhile = workMeanwhile();
  // Awaited below; if the core fails before, its failure is the one to tell.
  meanwhile.catch(() => undefined);
  const parked = await core.receive('parked');
  log.write(parked.log);
  try {
    clock?.enter('wait for digests');
    await meanwhile;
    clock?.enter('publish');
    await publish?.(parked);
    // Last: from now on the tree runs, and everything that manages it finds it.
    clock?.enter('release the tree');
    core.send(keep ? { keep: {} } : { release: {} });
  } catch (error) {
    await core.rollBack();
    throw error;
  }
  if (!keep) return { parked, timings: (await core.receive('released')).timings };
  await core.receive('kept');
  core.letGo();
  return { parked, timings: parked.timings };
}

const kMethodUffd = 0;

/** Page files that have a page digest, and all that a page process reads. */
function comparedByCore(plan: PartialMessage<Plan>, images: ImageInput, lazyPages: boolean): ReadonlySet<string> {
  const names = plan.pageFiles ?? [];
  const lazyFills = lazyPages ? (plan.tasks ?? []).flatMap((task) => task.fills ?? []) : [];
  return new Set([
    ...names.filter((name) => images.entryOf(name)?.pageDigest !== undefined),
    ...lazyFills
      .filter(({ method }) => (method ?? 0) === kMethodUffd)
      .map(({ pageFile }) => names[pageFile ?? 0] ?? ''),
  ]);
}
