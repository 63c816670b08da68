// features: what the base runtime says it can do, and that checkpoint and
// restore are ours. containerd and CRI-O ask for it when they start.
import { baseRuntimeFeatures } from '../../../runtime-shim/container/index.js';
import { featureAnnotations } from '../../version.js';
import { jsonText } from '../../render/table.js';
import type { Command } from '../command.js';

export const featuresCommand: Command = {
  verb: 'features',
  describe: 'Print what the base runtime supports, with annotations org.stasis.* of our own.',
  options: [],
  runtimeVerb: true,
  run: async (_given, _positional, context) => {
    const features = await baseRuntimeFeatures(context.environment);
    context.print(jsonText({ ...features, annotations: { ...features.annotations, ...featureAnnotations() } }));
    return 0;
  },
};
