// A process of our own, dumped and restored.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pollUntil } from '../../runtime-shim/container/index.js';
import { ownCore } from '../../runtime-shim/own-process.js';
import { kRehearsals, type Rehearsal } from '../rehearsal.js';

export const rehearseProcess: Rehearsal = async (run, directory) => {
  // Another file than the one that restores it: the kernel gives a process no other executable while it maps the old one.
  const program = join(directory, 'wait');
  copyFileSync(ownCore(), program);
  const child = spawn(program, ['wait'], { stdio: 'ignore', detached: true });
  await once(child, 'spawn');
  const pid = child.pid!;
  const dump = (images: string, ...words: string[]): Promise<void> => {
    mkdirSync(images);
    return run('dump', '--tree', String(pid), '--images-dir', images, ...words);
  };
  try {
    for (let left = kRehearsals; left > 0; left -= 1) await dump(join(directory, `running${left}`), '--leave-running');
    for (let left = kRehearsals; left > 0; left -= 1) {
      const images = join(directory, `ended${left}`);
      await dump(images);
      // Somebody else's child after the first restore: its number is free when that has asked how it ended.
      if (!(await pollUntil(() => !existsSync(`/proc/${pid}`), 10_000)))
        throw new Error(`nobody has waited for process ${pid}`);
      await run('restore', '--images-dir', images, '--restore-detached');
    }
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
};
