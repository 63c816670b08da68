// Pre-dumps until little is left to write, then the checkpoint: a long write
// while the container runs, a short one while it stands still.
//
//   DIR/pre-1  <-  DIR/pre-2  <-  ...  <-  DIR
//
// If we die here: the container runs on. The next run clears the rounds away.
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { checkpointContainer, type ContainerCheckpoint } from './checkpoint.js';
import type { CheckpointResult } from './checkpoint-request.js';
import { makeDirectory } from './directories.js';
import { fileError } from './errors/index.js';

/** What is left to write while the container stands still: 8 MiB of pages, some milliseconds. */
const kFewPages = 2048;
/** A program that writes as fast as it is copied will not come to rest. */
const kMaximalRounds = 8;
/** A round that leaves more than this part of the one before was not worth it. */
const kWorthwhile = 0.7;

const roundName = /^pre-[0-9]+$/;

export async function checkpointInRounds(request: ContainerCheckpoint): Promise<CheckpointResult> {
  const { imagePath } = request;
  clearRounds(imagePath);
  let previous: string | undefined;
  let before = Infinity;
  for (let round = 1; round <= kMaximalRounds; round += 1) {
    const name = `pre-${round}`;
    const result = await checkpointContainer({
      ...request,
      imagePath: join(imagePath, name),
      leaveRunning: true,
      preDump: true,
      ...(previous === undefined ? {} : { parentPath: `../${previous}` }),
    });
    previous = name;
    const { written } = result.pages;
    if (written <= kFewPages || written > before * kWorthwhile) break;
    before = written;
  }
  return checkpointContainer({ ...request, ...(previous === undefined ? {} : { parentPath: previous }) });
}

/** A checkpoint that was there loses its parents, so it ends first. */
function clearRounds(imagePath: string): void {
  try {
    makeDirectory(imagePath, 0o700);
    const rounds = readdirSync(imagePath).filter((name) => roundName.test(name));
    if (rounds.length > 0) rmSync(join(imagePath, 'inventory.img'), { force: true });
    for (const name of rounds) rmSync(join(imagePath, name), { recursive: true, force: true });
  } catch (error) {
    throw fileError(`cannot write images to ${imagePath}`, imagePath, error);
  }
}
