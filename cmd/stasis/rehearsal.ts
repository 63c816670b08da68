// A container of our own, checkpointed and restored.
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { runBaseRuntime } from '../../runtime-shim/container/index.js';
import { ownCore } from '../../runtime-shim/own-process.js';
import { kRehearsals, type Rehearsal } from '../rehearsal.js';

export const rehearseContainer: Rehearsal = async (run, directory) => {
  const bundle = join(directory, 'bundle');
  const root = join(directory, 'root');
  const images = join(directory, 'images');
  const id = `stasis-setup-${process.pid}`;
  mkdirSync(join(bundle, 'rootfs'), { recursive: true });
  // Linked to nothing: it runs in a root file system without anything else.
  copyFileSync(ownCore(), join(bundle, 'rootfs/wait'));
  await runBaseRuntime(process.env, ['spec', '--bundle', bundle]);
  const config = join(bundle, 'config.json');
  const document = JSON.parse(readFileSync(config, 'utf8')) as { process: object };
  Object.assign(document.process, { args: ['/wait', 'wait'], terminal: false });
  writeFileSync(config, JSON.stringify(document));
  await runBaseRuntime(process.env, ['--root', root, 'run', '--detach', '--bundle', bundle, id]);
  try {
    for (let left = kRehearsals; left > 0; left -= 1) {
      await run('--root', root, 'checkpoint', '--image-path', `${images}${left}`, '--leave-running', id);
      await run('--root', root, 'checkpoint', '--image-path', images, id);
      await run('--root', root, 'restore', '--detach', '--image-path', images, '--bundle', bundle, id);
    }
  } finally {
    await runBaseRuntime(process.env, ['--root', root, 'delete', '--force', id]);
  }
};
