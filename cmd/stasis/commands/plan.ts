// plan: what a restore would do, step by step; nothing is done.
import { resolve } from 'node:path';
import type { RuntimeOption } from '../../../oci-spec/runtime-options.js';
import { printPlan } from '../../../runtime-shim/engine/index.js';
import { planContainer } from '../../../runtime-shim/plan.js';
import { errorSentence } from '../../render/error.js';
import { jsonText } from '../../render/table.js';
import { flag, text, type Command } from '../command.js';

const options: readonly RuntimeOption[] = [
  { name: 'image-path', type: 'string', describe: 'directory of the images (default "<cwd>/checkpoint")' },
  { name: 'bundle', alias: 'b', type: 'string', describe: 'plan for this bundle; without it, for the images alone' },
  { name: 'json', type: 'boolean', describe: 'print the plan as JSON' },
];

export const planCommand: Command = {
  verb: 'plan',
  describe: 'Print the restore plan of a checkpoint, and run nothing.',
  options,
  runtimeVerb: false,
  run: async (given, _positional, context) => {
    const bundle = text(given, 'bundle');
    const { plan, objections, degradations } = planContainer({
      imagePath: resolve(context.cwd, text(given, 'image-path') ?? 'checkpoint'),
      bundle: bundle === undefined ? undefined : resolve(context.cwd, bundle),
    });
    if (flag(given, 'json')) {
      context.print(
        jsonText({
          plan,
          objections: objections.map(errorSentence),
          degradations: degradations.map(({ message }) => message),
        }),
      );
    } else {
      context.print(printPlan(plan));
      for (const objection of objections) context.print(`objection: ${errorSentence(objection)}`);
      for (const { message } of degradations) context.print(`degradation: ${message}`);
    }
    return objections.length === 0 ? 0 : 3;
  },
};
