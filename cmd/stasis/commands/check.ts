// check: what works on this host, and what a missing feature costs.
import type { RuntimeOption } from '../../../oci-spec/runtime-options.js';
import { checkHost } from '../../../runtime-shim/host-check.js';
import { jsonText, table } from '../../render/table.js';
import { flag, type Command } from '../command.js';

const options: readonly RuntimeOption[] = [{ name: 'json', type: 'boolean', describe: 'print as JSON' }];
const kEnvironmentStatus = 4;

export const checkCommand: Command = {
  verb: 'check',
  describe: 'Say what this kernel and these privileges allow, feature by feature.',
  options,
  runtimeVerb: false,
  run: async (given, _positional, context) => {
    const features = checkHost();
    const usable = features.every(({ available, required }) => available || !required);
    if (flag(given, 'json')) context.print(jsonText({ usable, features }));
    else {
      context.print(
        table(
          features.map(({ name, available, required, detail }) => [
            available ? 'ok' : required ? 'MISSING' : 'missing',
            name,
            detail,
          ]),
        ),
      );
      context.print(usable ? 'checkpoint and restore work here' : 'checkpoint and restore do not work here');
    }
    return usable ? 0 : kEnvironmentStatus;
  },
};
