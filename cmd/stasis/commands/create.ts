// create <container-id>, of a container whose config.json names a checkpoint
// that is there: a restore that waits for "start". The launcher gives every
// other create to the base runtime.
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { createOptions } from '../../../oci-spec/runtime-options.js';
import { warmAnnotation } from '../../../oci-spec/warm-start.js';
import { readBundle } from '../../../runtime-shim/bundle.js';
import { StasisError } from '../../../runtime-shim/errors/index.js';
import { runPoststartHooks } from '../../../runtime-shim/hooks.js';
import { restoreContainer } from '../../../runtime-shim/restore.js';
import { restoreDefaults } from '../../../runtime-shim/restore-request.js';
import { restoreArchive } from '../../../runtime-shim/restore-archive.js';
import { requireRoot } from '../../require-root.js';
import { flag, text, type Command } from '../command.js';

export const createCommand: Command = {
  verb: 'create',
  describe: `Create a container; with the annotation ${warmAnnotation.restore}, from its checkpoint.`,
  positional: 'container-id',
  options: createOptions,
  runtimeVerb: true,
  run: async (given, id, context) => {
    requireRoot(`create container ${JSON.stringify(id)}`);
    const path = (name: string): string | undefined => {
      const value = text(given, name);
      return value === undefined ? undefined : resolve(context.cwd, value);
    };
    const directory = path('bundle') ?? context.cwd;
    const bundle = readBundle(directory);
    const source = bundle.spec.annotations[warmAnnotation.restore] ?? '';
    const found = source.startsWith('/') ? statSync(source, { throwIfNoEntry: false }) : undefined;
    if (found === undefined) {
      throw new StasisError({
        code: 'USAGE',
        message: `cannot create container ${JSON.stringify(id)}: its annotation ${warmAnnotation.restore} is ${JSON.stringify(source)}, where no checkpoint is`,
        subject: { container: id },
        hint: source.startsWith('/')
          ? 'it has just gone; try again'
          : 'name an archive or an image directory by its absolute path',
      });
    }
    const request = {
      ...restoreDefaults,
      root: context.globals.root,
      id,
      systemdCgroup: context.globals.systemdCgroup,
      bundle: directory,
      workPath: undefined,
      pidFile: path('pid-file'),
      consoleSocket: path('console-socket'),
      detach: true,
      prepare: true,
      noPivot: flag(given, 'no-pivot'),
      noNewKeyring: flag(given, 'no-new-keyring'),
      shellJob: false,
      signal: context.signal,
    };
    const restored = found.isDirectory()
      ? await restoreContainer({ ...request, imagePath: source })
      : await restoreArchive({ ...request, archive: source, ignoreRootfs: false, maxBytes: undefined });
    for (const { message } of restored.degradations) context.warn(message);
    // As runc does, which runs them before the start.
    await runPoststartHooks(
      { spec: bundle.spec, id, bundle: directory, initHostPid: restored.initHostPid },
      (message) => context.warn(message),
    );
    return 0;
  },
};
