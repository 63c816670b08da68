// The end of a container that was checkpointed and killed.
import { existsSync, rmSync } from 'node:fs';
import { StasisError } from '../errors/index.js';
import { deleteContainer, type BaseRuntime } from './base-runtime.js';
import { removeCgroupTrees } from './cgroups.js';
import type { Container } from './container.js';

/** How long the tasks of a killed container may take to leave their cgroups. */
const kLeaveTimeoutMs = 5_000;

/**
 * Takes away state and cgroups. What only its runtime knows how to end (poststop hooks, systemd units, resource
 * control groups), or what resists us, is left to the runtime's `delete --force`: that is another 50 ms.
 */
export async function removeContainer(runtime: BaseRuntime, root: string, container: Container): Promise<void> {
  const { id, state, stateDirectory } = container;
  const mine = !state.systemdCgroup && !state.needsRuntimeToDelete;
  if (mine && (await removeCgroupTrees(state.cgroupPaths.values(), kLeaveTimeoutMs))) {
    rmSync(stateDirectory, { recursive: true, force: true });
    return;
  }
  await deleteContainer(runtime, { root, id, systemdCgroup: state.systemdCgroup });
  if (!existsSync(stateDirectory)) return;
  // "delete --force" succeeds for containers that a runtime does not know, such as those of another one.
  throw new StasisError({
    code: 'ENVIRONMENT',
    message: `cannot delete container ${JSON.stringify(id)} after its checkpoint: it was made by ${container.madeBy}, and ${runtime.path} does not know it`,
    subject: { container: id, path: stateDirectory },
    why: 'the checkpoint itself is complete',
    hint: `name ${container.madeBy} as the base runtime, and delete the container with it`,
  });
}
