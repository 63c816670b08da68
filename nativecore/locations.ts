// Where our own files are: next to the bundle, or in build/ when the compiled
// sources run from there. One environment variable overrides it: STASIS_LIB_DIR.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface Locations {
  /** Addon and bundles. */
  readonly libraryDirectory: string;
  readonly addon: string;
  readonly core: string;
}

export function findLocations(environment: NodeJS.ProcessEnv = process.env): Locations {
  const named = environment['STASIS_LIB_DIR'];
  const libraryDirectory =
    named !== undefined && named !== '' ? named : searchLibrary(dirname(fileURLToPath(import.meta.url)));
  return {
    libraryDirectory,
    addon: join(libraryDirectory, 'stasis.node'),
    core: join(libraryDirectory, '..', '..', 'bin', 'stasis-core'),
  };
}

function searchLibrary(own: string): string {
  for (let directory = own; ; directory = dirname(directory)) {
    if (existsSync(join(directory, 'stasis.node'))) return directory;
    // The compiled tree is build/ts/...; the addon is then in build/lib/stasis.
    const built = join(directory, 'lib', 'stasis');
    if (existsSync(join(built, 'stasis.node'))) return built;
    if (directory === dirname(directory)) return own;
  }
}
