// The start and the end of our own process.
import { setFlagsFromString } from 'node:v8';
import { findLocations, loadedBinding, nativeBinding } from '../nativecore/index.js';

/** Names as nativecore/base/program_image.h and nativecore/launcher/launcher_main.cc have them. */
const kAskedForImage = 'STASIS_PROGRAM_IMAGE';
const kWhyNoImage = 'STASIS_NO_IMAGE';

let whyNoImage: string | undefined;

/** Why this process was not started from an image; undefined: it was. */
export const whyOrdinaryStart = (): string | undefined => whyNoImage;

export const ownCore = (): string => findLocations().core;

/** Of a process that was started in the ordinary way: the words after the program's name. */
export function takeWords(): readonly string[] {
  whyNoImage = process.env[kWhyNoImage] ?? 'node was started without the launcher';
  delete process.env[kWhyNoImage];
  return process.argv.slice(2);
}

/** True: everything is to be done that has to be done once, and then becomeImage(). */
export function isAskedForImage(): boolean {
  if (process.env[kAskedForImage] === undefined) return false;
  nativeBinding().keepOwnDescriptors();
  return true;
}

/**
 * Does not return here, but in each process that is started from the image (docs/design/0072), with its words. What has
 * been asked of the world before is the same for all of them.
 */
export function becomeImage(): readonly string[] {
  const toldFd = Number(process.env[kAskedForImage]);
  const binding = nativeBinding();
  collectGarbage();
  const { words, pid } = binding.awaitStart(toldFd);
  // Node asks for it once, at its own start.
  Object.defineProperty(process, 'pid', { value: pid, enumerable: true });
  return words;
}

/** What is left goes into the image, and V8 is to collect nothing before there is as much again: a command of 40 ms ends before. */
function collectGarbage(): void {
  setFlagsFromString('--heap-growing-percent=400');
  // There under --expose-gc. This kind of collection compacts, and gives what it can back: what is left of rehearsals lies scattered.
  const collect = (globalThis as { gc?: (how: object) => void }).gc;
  collect?.({ type: 'major', execution: 'sync', flavor: 'last-resort' });
  setFlagsFromString('--heap-growing-percent=0');
}

/** Returns where node has to end itself: nothing native was needed, or a standard stream is to be given back as it was. */
export function exitAtOnce(status: number): void {
  loadedBinding()?.exitAtOnce(status);
}
