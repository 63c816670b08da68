// What a privileged test may not leave behind: processes (least of all stopped
// ones), mounts, cgroups, state directories, descriptors of this process.
import { existsSync, readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupDirectories } from './cgroups.js';
import { coreProgram } from './paths.js';
import { isAlive, processesInCgroup, processesOfProgram, processState, readOrEmpty } from './processes.js';
import { cgroupParent } from './run-identity.js';
import { waitFor } from './wait.js';

export interface HostPicture {
  readonly mounts: readonly string[];
  readonly descriptors: readonly string[];
  readonly cores: readonly number[];
}

export function takePicture(): HostPicture {
  return { mounts: mountPoints(), descriptors: openFiles(), cores: processesOfProgram(coreProgram) };
}

/** Every difference between `before` and now that a test is to blame for, in words; empty if all is well. */
export async function findLeaks(before: HostPicture, directory: string): Promise<string[]> {
  // A core that was told to go may need a moment, and so may the kernel with an emptied cgroup.
  const settled = async (look: () => string[]): Promise<string[]> => {
    let seen: string[] = [];
    try {
      await waitFor('nothing to be left', () => ((seen = look()).length === 0 ? true : undefined), { timeoutMs: 3000 });
      return [];
    } catch {
      return seen;
    }
  };
  return [
    ...(await settled(() =>
      processesOfProgram(coreProgram)
        .filter((pid) => isAlive(pid) && !before.cores.includes(pid))
        .map((pid) => `stasis-core is still running as process ${pid}`),
    )),
    ...(await settled(() =>
      processesInCgroup(cgroupParent).map(
        (pid) => `process ${pid} (${readOrEmpty(`/proc/${pid}/comm`).trim()}) is left, in state ${processState(pid)}`,
      ),
    )),
    ...(await settled(() =>
      cgroupDirectories(cgroupParent).flatMap((parent) =>
        readdirSync(parent, { withFileTypes: true })
          .filter((entry) => entry.isDirectory())
          .map((entry) => `cgroup ${join(parent, entry.name)} is left`),
      ),
    )),
    ...mountPoints()
      .filter((mount) => !before.mounts.includes(mount))
      .map((mount) => `mount ${mount} is left`),
    ...stateDirectories(directory).map((state) => `state directory ${state} is left`),
    ...openFiles()
      .filter((file) => file.startsWith(directory) && !before.descriptors.includes(file))
      .map((file) => `the test process still has ${file} open`),
  ];
}

function mountPoints(): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => line.split(' ')[4] ?? '');
}

function openFiles(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      return []; // the descriptor of the listing itself
    }
  });
}

/** What crun keeps for all its containers. */
const shared = ['.cache', '.empty-directory'];

function stateDirectories(directory: string): string[] {
  const root = join(directory, 'state');
  const names = existsSync(root) ? readdirSync(root).filter((name) => !shared.includes(name)) : [];
  return names.map((name) => join(root, name));
}
