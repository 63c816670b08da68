// Where the texts of --help come from. yargs takes 15 ms to load, and each start of a snapshot that holds it reads and
// maps 0.6 MB more: the programs that are built have it in a file beside them.
import { createRequire } from 'node:module';

type Help = typeof import('./render/help.js');

// Name of that file, set by the bundler; the compiled sources run without.
declare const __STASIS_HELP__: string | undefined;

export async function loadHelp(): Promise<Help> {
  if (typeof __STASIS_HELP__ === 'undefined') return await import('./render/help.js');
  return createRequire(import.meta.url)(`./${__STASIS_HELP__}`) as Help;
}
