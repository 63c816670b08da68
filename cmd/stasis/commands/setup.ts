// setup: the images that our programs start from. The launcher makes them: a program
// cannot write down what it will be before it has begun (docs/design/0072).
import { usage } from '../../arguments.js';
import type { Command } from '../command.js';

export const setupCommand: Command = {
  verb: 'setup',
  describe: 'Write the images that our programs start from: after an installation, a new kernel or C library.',
  options: [],
  runtimeVerb: false,
  // The launcher has sent us what is not the verb alone.
  run: async () => {
    throw usage('stasis: "setup" takes no options', 'run "stasis setup"');
  },
};
