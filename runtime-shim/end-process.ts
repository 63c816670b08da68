// The end of a program that has nothing left to do.
import { loadedBinding } from '../nativecore/index.js';

/** Returns where node has to end itself: nothing native was needed, or a standard stream is to be given back as it was. */
export function exitAtOnce(status: number): void {
  loadedBinding()?.exitAtOnce(status);
}
