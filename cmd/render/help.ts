// Help texts, by yargs. A file of its own in the programs that are built: load-help.ts.
import yargs from 'yargs';
import type { RuntimeOption } from '../../oci-spec/runtime-options.js';

const kWidth = 100;

export async function optionsHelp(usage: string, options: readonly RuntimeOption[]): Promise<string> {
  const program = yargs([]).scriptName('stasis').usage(usage).help(false).version(false).exitProcess(false);
  for (const option of options) {
    program.option(option.name, {
      type: option.type === 'list' ? 'array' : option.type,
      describe: option.refused === undefined ? option.describe : `${option.describe} (refused)`,
      ...(option.alias === undefined ? {} : { alias: option.alias }),
    });
  }
  return await program.wrap(kWidth).getHelp();
}
