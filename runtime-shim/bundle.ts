// The bundle that a container is restored into: config.json and root file
// system, checked before anything is made.
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { FormatError } from '../oci-spec/json.js';
import { isAbsolute } from '../oci-spec/paths.js';
import { parseRuntimeConfig, type RuntimeConfig } from '../oci-spec/runtime-config.js';
import { StasisError, errnoCode, fileError } from './errors/index.js';

export interface Bundle {
  readonly directory: string;
  /** config.json as it is. */
  readonly text: string;
  readonly spec: RuntimeConfig;
  /** Absolute. */
  readonly rootfs: string;
}

export function readBundle(directory: string): Bundle {
  const path = join(directory, 'config.json');
  let text: string;
  let spec: RuntimeConfig;
  try {
    text = readFileSync(path, 'utf8');
    spec = parseRuntimeConfig(text);
  } catch (error) {
    if (error instanceof FormatError) {
      throw invalid(`cannot read the bundle ${directory}: config.json: ${error.message}`, path, 'repair config.json');
    }
    if (errnoCode(error) === 'ENOENT') {
      throw invalid(
        `cannot read the bundle ${directory}: there is no config.json`,
        path,
        'give --bundle the directory that the container was made from',
      );
    }
    throw fileError(`cannot read the bundle ${directory}`, path, error, 'BUNDLE_INVALID');
  }
  const rootfs = isAbsolute(spec.root.path) ? spec.root.path : join(directory, spec.root.path);
  if (statSync(rootfs, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw invalid(
      `cannot read the bundle ${directory}: root.path ${rootfs} is not a directory`,
      rootfs,
      'mount or unpack the root file system there',
    );
  }
  return { directory, text, spec, rootfs };
}

/** A terminal's master side lives outside the container: somebody has to take it over, and nobody else may be asked. */
export function refuseConsoleMismatch(
  bundle: Bundle,
  goal: string,
  asked: { readonly consoleSocket: string | undefined; readonly detach: boolean },
): void {
  const terminal = bundle.spec.process?.terminal === true;
  if (terminal ? asked.detach === (asked.consoleSocket !== undefined) : asked.consoleSocket === undefined) return;
  const path = join(bundle.directory, 'config.json');
  throw new StasisError({
    code: 'USAGE',
    message: !terminal
      ? `cannot ${goal}: --console-socket is given, and process.terminal is not true in config.json`
      : asked.detach
        ? `cannot ${goal}: process.terminal is true in config.json, and no --console-socket is given to take the terminal`
        : `cannot ${goal}: --console-socket is given without --detach, and in the foreground the terminal is ours`,
    subject: { path },
    hint: !terminal
      ? 'leave --console-socket out'
      : asked.detach
        ? 'pass --console-socket, or leave --detach out'
        : 'pass --detach, or leave --console-socket out',
  });
}

function invalid(message: string, path: string, hint: string): StasisError {
  return new StasisError({ code: 'BUNDLE_INVALID', message, subject: { path }, hint });
}
