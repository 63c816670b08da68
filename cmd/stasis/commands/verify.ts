// verify: whether an archive is whole and sound; nothing is unpacked.
import { resolve } from 'node:path';
import type { RuntimeOption } from '../../../oci-spec/runtime-options.js';
import { describeCheckpoint } from '../../../runtime-shim/convert/describe-checkpoint.js';
import { bytesText, jsonText } from '../../render/table.js';
import { withProgress } from '../../render/progress.js';
import { flag, type Command } from '../command.js';

const options: readonly RuntimeOption[] = [{ name: 'json', type: 'boolean', describe: 'print the result as JSON' }];

export const verifyCommand: Command = {
  verb: 'verify',
  describe: 'Check an archive, an OCI image or a directory of images against its digests.',
  positional: 'file',
  options,
  runtimeVerb: false,
  run: async (given, file, context) => {
    const result = await withProgress('verifying', ({ add }) => describeCheckpoint(resolve(context.cwd, file), add));
    if (flag(given, 'json')) context.print(jsonText(result));
    else {
      const digests = {
        all: 'every member has its digest',
        images: 'every image has its digest; the other members have none',
        none: 'its maker wrote no digests: the form is sound, the content cannot be known to be',
      }[result.digests];
      const parents = ['', '; so is the earlier one that it leaves pages to'][result.parents];
      const more = parents ?? `; so are the ${result.parents} earlier ones that it leaves pages to`;
      context.print(
        `${file}: sound: ${result.form} of a checkpoint of ${JSON.stringify(result.name)}, ${result.files} files, ${bytesText(result.contentBytes)}; ${digests}${more}`,
      );
    }
    return 0;
  },
};
