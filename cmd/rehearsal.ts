// What a program does before an image is made of it: its work, for real, some
// times over. What V8 then has compiled and learnt of our code is in the image
// (docs/design/0072). Each call of `main` leaves nothing behind that a later one
// could find: our modules keep no state.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';

export type Main = (words: readonly string[]) => Promise<number>;

/** Throws with what `main` said if it does not return 0. */
export type Run = (...words: readonly string[]) => Promise<void>;

/** In a directory of its own, which goes with all that is in it. */
export type Rehearsal = (run: Run, directory: string) => Promise<void>;

/** Enough for V8 to know the types that our code meets, and to have machine code of what runs often. */
export const kRehearsals = 6;

/** Returns why it could not be done to the end, if it could not: the image is as good, but starts colder. */
export async function rehearse(main: Main, rehearsal: Rehearsal): Promise<string | undefined> {
  const directory = mkdtempSync(join(tmpdir(), 'stasis-setup-'));
  const said: string[] = [];
  const giveBack = takeStreams(said);
  try {
    await rehearsal(async (...words) => {
      said.length = 0;
      if ((await main(words)) !== 0) throw new Error(said.join('').trim().split('\n').pop());
    }, directory);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  } finally {
    giveBack();
    rmSync(directory, { recursive: true, force: true });
    // Each call of `main` has set its own.
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.removeAllListeners(signal);
    // Node remembers the working directory until it is changed.
    process.chdir('/');
  }
}

/** Node makes streams of descriptors 1 and 2 once: in a process that starts from the image they are others. */
function takeStreams(said: string[]): () => void {
  const sink = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      said.push(chunk.toString());
      done();
    },
  });
  const names = ['stdout', 'stderr'] as const;
  const own = names.map((name) => Object.getOwnPropertyDescriptor(process, name)!);
  for (const name of names) Object.defineProperty(process, name, { configurable: true, get: () => sink });
  return () => names.forEach((name, at) => Object.defineProperty(process, name, own[at]!));
}
