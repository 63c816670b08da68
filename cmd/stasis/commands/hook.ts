// hook: a poststart hook. The launcher has sent whoever waits for it home: what
// goes wrong is told beside the checkpoint, in one line.
import { text as readStream } from 'node:stream/consumers';
import { checkpointWhenWarm, parseHookState, warmCheckpointOf } from '../../../runtime-shim/warm-checkpoint.js';
import { errorSentence } from '../../render/error.js';
import { appendLog, logRecord } from '../../render/log.js';
import type { Command } from '../command.js';

export const hookCommand: Command = {
  verb: 'hook',
  describe: 'As a poststart hook: checkpoint the container when it is warm, for its next start.',
  options: [],
  runtimeVerb: true,
  run: async (_given, _positional, context) => {
    const container = parseHookState(await readStream(process.stdin));
    const note = (level: 'info' | 'error', message: string): void =>
      void appendLog(
        `${container.annotations['org.stasis.restore'] ?? ''}.log`,
        logRecord('text', level, message, new Date()),
      );
    try {
      const request = warmCheckpointOf(container);
      if (request === undefined) return 0;
      const result = await checkpointWhenWarm({ ...request, root: context.globals.root, signal: context.signal });
      if (result === undefined) return 0;
      for (const { message } of result.degradations) note('info', message);
      note('info', `container ${container.id} is warm: its checkpoint is there for the next start`);
      return 0;
    } catch (error) {
      note('error', errorSentence(error));
      return 1;
    }
  },
};
