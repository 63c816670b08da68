// unpack: an archive or an OCI image into a directory, checked before anything
// appears there.
import { resolve } from 'node:path';
import type { RuntimeOption } from '../../../oci-spec/runtime-options.js';
import { unpackCheckpoint } from '../../../runtime-shim/convert/unpack-checkpoint.js';
import { usage } from '../../arguments.js';
import { withProgress } from '../../render/progress.js';
import { bytesOption, flag, text, type Command } from '../command.js';

const options: readonly RuntimeOption[] = [
  { name: 'output', alias: 'o', type: 'string', describe: 'directory to make' },
  { name: 'images', type: 'boolean', describe: 'only the images, as restore --image-path reads them' },
  { name: 'tag', type: 'string', describe: 'name of the image in an OCI layout' },
  { name: 'max-bytes', type: 'string', describe: 'refuse what unpacks to more (default: what fits)' },
];

export const unpackCommand: Command = {
  verb: 'unpack',
  describe: 'Unpack an archive or an OCI image of a checkpoint into a directory.',
  positional: 'source',
  options,
  runtimeVerb: false,
  run: async (given, source, context) => {
    const output = text(given, 'output');
    if (output === undefined) throw usage('cannot unpack: --output is missing', 'name the directory to make');
    const request = {
      source: resolve(context.cwd, source),
      output: resolve(context.cwd, output),
      imagesOnly: flag(given, 'images'),
      tag: text(given, 'tag'),
      maxBytes: bytesOption(given, 'max-bytes'),
    };
    await withProgress('unpacking', ({ add }) => unpackCheckpoint({ ...request, onBytes: add }));
    return 0;
  },
};
