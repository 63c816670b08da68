// Mocha's spec reporter, which also leaves its counts in STASIS_SUMMARY_FILE
// for hack/run-tests.ts.
import { writeFileSync } from 'node:fs';
import mocha from 'mocha';

export interface Summary {
  passed: number;
  failed: number;
  skipped: number;
}

export default class SummaryReporter extends mocha.reporters.Spec {
  constructor(runner: mocha.Runner, options: mocha.MochaOptions) {
    super(runner, options);
    runner.once(mocha.Runner.constants.EVENT_RUN_END, () => {
      const file = process.env['STASIS_SUMMARY_FILE'];
      if (file === undefined) return;
      const { passes, failures, pending } = this.stats;
      const summary: Summary = { passed: passes, failed: failures, skipped: pending };
      writeFileSync(file, JSON.stringify(summary));
    });
  }
}
