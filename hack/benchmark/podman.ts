// Measures `podman container checkpoint` and `restore`: with stasis as the
// runtime and as criu, against runc with CRIU.
import { rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { buildDirectory } from '../../e2e/support/paths.js';
import { peers } from '../../e2e/support/peers.js';
import { Podman } from '../../e2e/support/podman.js';
import { chosenPodman, isInstalled } from '../../e2e/support/podman-sets.js';
import type { Subject, Tool } from './measure.js';
import { measurePairs, type TreeRequest, type WorkloadResult } from './pairs.js';

const directory = join(buildDirectory, 'bench', 'podman');
const kName = 'bench';

export async function measurePodman(request: TreeRequest): Promise<WorkloadResult> {
  if (!isInstalled(chosenPodman())) {
    const failure = `there is no ${chosenPodman().what}; hack/managers installs it`;
    return Object.fromEntries(request.tools.map((tool) => [tool, { samples: [], failure }]));
  }
  rmSync(directory, { recursive: true, force: true });
  const managers = new Map<Tool, Podman>();
  try {
    for (const tool of request.tools) managers.set(tool, await open(tool));
    // Each tool has a podman of its own; measurePairs says whose turn it is.
    return await measurePairs(request, (tool) => startContainer(managers.get(tool)!));
  } finally {
    for (const podman of managers.values()) await podman.close();
  }
}

async function open(tool: Tool): Promise<Podman> {
  const place = join(directory, tool === 'stasis' ? 's' : 'c');
  return tool === 'stasis'
    ? await Podman.open(place)
    : await Podman.open(place, { runtime: peers.runc, criuDirectory: dirname(peers.criu) });
}

async function startContainer(podman: Podman): Promise<Subject> {
  await podman.start(kName);
  const timed = async (...words: readonly string[]): Promise<number> => {
    const from = performance.now();
    await podman.must('container', ...words, kName);
    return performance.now() - from;
  };
  return {
    state: undefined,
    stats: false,
    checkpoint: async (_tool, _images, _work, live) => await timed('checkpoint', '--keep', ...(live ? ['-R'] : [])),
    restore: async () => await timed('restore', '--keep'),
    destroy: async () => {
      await podman.run('rm', '-f', '-t', '0', kName);
    },
  };
}
