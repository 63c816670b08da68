// checkpoint <container-id>: freeze a running container and write its images.
import { resolve } from 'node:path';
import { checkpointOptions } from '../../../oci-spec/runtime-options.js';
import { checkpointContainer } from '../../../runtime-shim/checkpoint.js';
import { checkpointDefaults } from '../../../runtime-shim/checkpoint-request.js';
import { jsonText } from '../../render/table.js';
import { requireRoot } from '../../require-root.js';
import { flag, text, type Command } from '../command.js';

export const checkpointCommand: Command = {
  verb: 'checkpoint',
  describe: 'Freeze a running container, write its state to images, and end it.',
  positional: 'container-id',
  options: checkpointOptions,
  runtimeVerb: true,
  run: async (given, id, context) => {
    requireRoot(`checkpoint container ${JSON.stringify(id)}`);
    const path = (name: string): string | undefined => {
      const value = text(given, name);
      return value === undefined ? undefined : resolve(context.cwd, value);
    };
    const result = await checkpointContainer({
      ...checkpointDefaults,
      root: context.globals.root,
      id,
      imagePath: path('image-path') ?? resolve(context.cwd, 'checkpoint'),
      workPath: path('work-path'),
      leaveRunning: flag(given, 'leave-running'),
      sync: !flag(given, 'no-fsync'),
      encode: {
        shellJob: flag(given, 'shell-job'),
        fileLocks: flag(given, 'file-locks'),
        tcpEstablished: flag(given, 'tcp-established'),
        externalUnixSockets: flag(given, 'ext-unix-sk'),
      },
      signal: context.signal,
    });
    for (const { message } of result.degradations) context.warn(message);
    if (flag(given, 'json')) context.print(jsonText(result));
    return 0;
  },
};
