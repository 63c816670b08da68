// Processes of our own, dumped and restored.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { ownCore } from '../../runtime-shim/own-process.js';
import { kRehearsals, type Rehearsal, type Run } from '../rehearsal.js';

export const rehearseProcess: Rehearsal = async (run, directory) => {
  // Another file than the one that restores it: the kernel gives a process no other executable while it maps the old one.
  const program = join(directory, 'wait');
  copyFileSync(ownCore(), program);
  for (let left = kRehearsals; left > 0; left -= 1) await carry(run, program, join(directory, `images${left}`));
};

async function carry(run: Run, program: string, directory: string): Promise<void> {
  const child = spawn(program, ['wait'], { stdio: 'ignore', detached: true });
  await once(child, 'spawn');
  const pid = child.pid!;
  const images = (name: string): string[] => {
    mkdirSync(join(directory, name), { recursive: true });
    return ['--images-dir', join(directory, name)];
  };
  try {
    await run('dump', '--tree', String(pid), ...images('running'), '--leave-running');
    const ended = once(child, 'exit');
    await run('dump', '--tree', String(pid), ...images('ended'));
    await ended;
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
  await run('restore', ...images('ended'), '--restore-detached');
  process.kill(pid, 'SIGKILL');
}
