// pack: a checkpoint in another form: an archive for a manager, an OCI image, a
// directory of images.
import { resolve } from 'node:path';
import { dialects, type Dialect } from '../../../oci-spec/checkpoint-archive.js';
import type { RuntimeOption } from '../../../oci-spec/runtime-options.js';
import { compressionOfName, type Compression } from '../../../runtime-shim/archive/compression.js';
import { sourceForms, targetForms, type SourceForm, type TargetForm } from '../../../runtime-shim/convert/forms.js';
import { packCheckpoint } from '../../../runtime-shim/convert/pack-checkpoint.js';
import { usage } from '../../arguments.js';
import { oneLine } from '../../render/error.js';
import { withProgress } from '../../render/progress.js';
import { jsonText } from '../../render/table.js';
import { stasisVersion } from '../../version.js';
import { flag, text, type Command } from '../command.js';

const options: readonly RuntimeOption[] = [
  { name: 'output', alias: 'o', type: 'string', describe: 'file or directory to write' },
  { name: 'to', type: 'string', describe: `form of the output: ${targetForms.join(', ')}`, values: targetForms },
  { name: 'from', type: 'string', describe: 'refuse a source that is of another form', values: sourceForms },
  {
    name: 'compress',
    type: 'string',
    describe: 'none, gzip or zstd (default: as the name says)',
    values: ['none', 'gzip', 'zstd'],
  },
  { name: 'tag', type: 'string', describe: 'name of the image in an OCI layout' },
  { name: 'spec', type: 'string', describe: "the container's config.json, for a directory of images" },
  { name: 'name', type: 'string', describe: 'name of the container' },
  { name: 'image', type: 'string', describe: 'name of the image that the container was made from' },
  {
    name: 'for',
    type: 'string',
    describe: "whose members an OCI image has (default: the source's)",
    values: dialects,
  },
  { name: 'image-id', type: 'string', describe: 'for podman: the 64 digits of its id (podman image inspect)' },
  { name: 'runtime', type: 'string', describe: "for podman: the runtime, as podman's --runtime (default: stasis)" },
  { name: 'network', type: 'string', describe: 'for podman: the network to join (default: podman)' },
  { name: 'json', type: 'boolean', describe: 'print the result as JSON' },
];

export const packCommand: Command = {
  verb: 'pack',
  describe: 'Convert a checkpoint: archives of podman, CRI-O and containerd, OCI images, directories of images.',
  positional: 'source',
  options,
  runtimeVerb: false,
  run: async (given, source, context) => {
    const output = text(given, 'output');
    if (output === undefined) throw usage('cannot pack: --output is missing', 'name the file or directory to write');
    const spec = text(given, 'spec');
    const imageId = (text(given, 'image-id') ?? '').replace(/^sha256:/, '');
    if (!/^([0-9a-f]{64})?$/.test(imageId)) {
      throw usage(
        `cannot pack: --image-id ${imageId} is not the id of an image`,
        "give the 64 digits that podman image inspect --format '{{.Id}}' prints",
      );
    }
    const request = {
      source: resolve(context.cwd, source),
      from: text(given, 'from') as SourceForm | undefined,
      to: (text(given, 'to') as TargetForm | undefined) ?? 'stasis',
      output: resolve(context.cwd, output),
      compression: (text(given, 'compress') as Compression | undefined) ?? compressionOfName(output),
      tag: text(given, 'tag') ?? '',
      spec: spec === undefined ? undefined : resolve(context.cwd, spec),
      name: text(given, 'name') ?? '',
      image: text(given, 'image') ?? '',
      imageFor: text(given, 'for') as Dialect | undefined,
      imageId,
      runtime: text(given, 'runtime') ?? '',
      network: text(given, 'network') ?? '',
      stasisVersion,
    };
    const result = await withProgress('packing', ({ at }) => packCheckpoint({ ...request, onProgress: at }));
    if (flag(given, 'json')) context.print(jsonText(result));
    else for (const note of result.notes) process.stderr.write(`note: ${oneLine(note)}\n`);
    return 0;
  },
};
