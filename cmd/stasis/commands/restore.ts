// restore <container-id>: bring a container back from its images.
import { resolve } from 'node:path';
import { restoreOptions } from '../../../oci-spec/runtime-options.js';
import type { TcpRule } from '../../../oci-spec/tcp-rule.js';
import { deleteContainer } from '../../../runtime-shim/container/index.js';
import { ForegroundTerminal } from '../../../runtime-shim/foreground-terminal.js';
import { becomeSubreaper, stayWith } from '../../../runtime-shim/foreground.js';
import { restoreContainer } from '../../../runtime-shim/restore.js';
import { restoreDefaults } from '../../../runtime-shim/restore-request.js';
import { restoreArchive } from '../../../runtime-shim/restore-archive.js';
import { usage, type Given } from '../../arguments.js';
import { showProgress } from '../../render/progress.js';
import { jsonText } from '../../render/table.js';
import { requireRoot } from '../../require-root.js';
import { bytesOption, flag, text, type Command } from '../command.js';

function tcpOption(given: Given): TcpRule | undefined {
  if (flag(given, 'tcp-close')) return 'close';
  return flag(given, 'tcp-established') ? 'established' : undefined;
}

export const restoreCommand: Command = {
  verb: 'restore',
  describe: 'Bring a container back from its images, under the bundle that is given.',
  positional: 'container-id',
  options: restoreOptions,
  runtimeVerb: true,
  run: async (given, id, context) => {
    requireRoot(`restore container ${JSON.stringify(id)}`);
    const path = (name: string): string | undefined => {
      const value = text(given, name);
      return value === undefined ? undefined : resolve(context.cwd, value);
    };
    const prepare = flag(given, 'prepare');
    const detach = flag(given, 'detach') || prepare;
    // In the foreground the container becomes our child when the core goes, whatever the caller says.
    if (prepare && flag(given, 'lazy-pages'))
      throw usage(
        'cannot use --prepare and --lazy-pages together: a prepared container has all its memory before it is started',
        'leave one of them out',
      );
    // A prepared one goes to whoever waits for us.
    if (!prepare && (!detach || !flag(given, 'no-subreaper'))) becomeSubreaper();
    const bundle = path('bundle') ?? context.cwd;
    // Without --detach the streams are the container's.
    if (flag(given, 'json') && !detach)
      throw usage("cannot use --json without --detach: standard output is the container's then");
    const archive = path('archive');
    if (archive !== undefined && path('image-path') !== undefined)
      throw usage('cannot use --archive and --image-path together');
    for (const name of ['ignore-rootfs', 'max-bytes']) {
      if (archive === undefined && given[name] !== undefined) throw usage(`cannot use --${name} without --archive`);
    }
    const request = {
      ...restoreDefaults,
      root: context.globals.root,
      id,
      systemdCgroup: context.globals.systemdCgroup,
      bundle,
      workPath: path('work-path'),
      pidFile: path('pid-file'),
      consoleSocket: path('console-socket'),
      detach,
      prepare,
      noPivot: flag(given, 'no-pivot'),
      noNewKeyring: flag(given, 'no-new-keyring'),
      shellJob: flag(given, 'shell-job'),
      tcp: tcpOption(given),
      lazyPages: flag(given, 'lazy-pages'),
      signal: context.signal,
    };
    const imagePath = path('image-path') ?? resolve(context.cwd, 'checkpoint');
    const restored = await showProgress(text(given, 'progress') === 'json', (onProgress) =>
      archive === undefined
        ? restoreContainer({ ...request, onProgress, imagePath })
        : restoreArchive({
            ...request,
            onProgress,
            archive,
            ignoreRootfs: flag(given, 'ignore-rootfs'),
            maxBytes: bytesOption(given, 'max-bytes'),
          }),
    );
    for (const { message } of restored.degradations) context.warn(message);
    if (flag(given, 'json')) {
      const { initHostPid, degradations, timings } = restored;
      context.print(jsonText({ initHostPid, degradations, timings }));
    }
    if (detach) return 0;
    const terminal = restored.masterFd === undefined ? undefined : new ForegroundTerminal(restored.masterFd);
    const status = await stayWith(restored.initHostPid, terminal === undefined ? [] : ['SIGWINCH']);
    await terminal?.end();
    await deleteContainer(restored.base, { root: restored.root, id, systemdCgroup: request.systemdCgroup });
    return status;
  },
};
