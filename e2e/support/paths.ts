// Where things are: the tests use the built commands and nothing of our sources.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository: this file runs as build/ts/e2e/support/paths.js. */
export const repository = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..', '..');
export const buildDirectory = join(repository, 'build');
export const stasisProgram = join(buildDirectory, 'bin', 'stasis');
export const coreProgram = join(buildDirectory, 'bin', 'stasis-core');
export const criuProgram = join(buildDirectory, 'bin', 'stasis-criu');
export const targetDirectory = join(buildDirectory, 'targets');
export const cacheDirectory = join(buildDirectory, 'cache');
export const peerDirectory = join(buildDirectory, 'peers');
/** What hack/managers installs. */
export const managersDirectory = join(buildDirectory, 'managers');
/** One folder per test; kept when the test fails. */
export const artefactDirectory = join(buildDirectory, 'e2e');
