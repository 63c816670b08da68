// inspect SOURCE: what is in a set of images, or in the images of an archive.
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import type { RuntimeOption } from '../../../oci-spec/runtime-options.js';
import { describeImages, type ImageDescription } from '../../../runtime-shim/engine/index.js';
import { readImages } from '../../../runtime-shim/plan.js';
import { lookIntoArchive } from '../../../runtime-shim/restore-archive.js';
import { readTimings } from '../../../runtime-shim/timings-file.js';
import { renderDescription } from '../../render/description.js';
import { jsonText } from '../../render/table.js';
import { renderTimeline } from '../../render/timeline.js';
import { flag, type Command } from '../command.js';

const options: readonly RuntimeOption[] = [{ name: 'json', type: 'boolean', describe: 'print as JSON' }];

export const inspectCommand: Command = {
  verb: 'inspect',
  describe:
    'Print what is in a checkpoint, a directory or an archive: processes, memory, files, mounts, namespaces, sizes.',
  positional: 'source',
  options,
  runtimeVerb: false,
  run: async (given, source, context) => {
    const path = resolve(context.cwd, source);
    const describe = (imagePath: string): ImageDescription =>
      readImages(imagePath, (_images, model) => describeImages(model));
    const isFile = statSync(path, { throwIfNoEntry: false })?.isFile() === true;
    const description = isFile ? await lookIntoArchive(path, describe) : describe(path);
    const timeline = isFile ? undefined : readTimings(path);
    context.print(
      flag(given, 'json')
        ? jsonText(timeline === undefined ? description : { ...description, timeline })
        : [renderDescription(description), ...(timeline === undefined ? [] : [renderTimeline(timeline)])].join('\n\n'),
    );
    return 0;
  },
};
