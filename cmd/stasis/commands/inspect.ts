// inspect DIR: what is in a set of images.
import { resolve } from 'node:path';
import type { RuntimeOption } from '../../../oci-spec/runtime-options.js';
import { describeImages } from '../../../runtime-shim/engine/index.js';
import { readImages } from '../../../runtime-shim/plan.js';
import { renderDescription } from '../../render/description.js';
import { jsonText } from '../../render/table.js';
import { flag, type Command } from '../command.js';

const options: readonly RuntimeOption[] = [{ name: 'json', type: 'boolean', describe: 'print as JSON' }];

export const inspectCommand: Command = {
  verb: 'inspect',
  describe: 'Print what is in a checkpoint: processes, memory, files, mounts, namespaces, sizes.',
  positional: 'directory',
  options,
  runtimeVerb: false,
  run: async (given, directory, context) => {
    const description = readImages(resolve(context.cwd, directory), (_images, model) => describeImages(model));
    context.print(flag(given, 'json') ? jsonText(description) : renderDescription(description));
    return 0;
  },
};
