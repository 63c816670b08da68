import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { errorsMarkdown } from './catalogue.js';
import { errorCodes, factsOfCode } from './codes.js';

// from build/ts/runtime-shim/errors, where the compiled test lies
const page = new URL('../../../../docs/errors.md', import.meta.url);

describe('catalogue of errors', () => {
  it('is what docs/errors.md says (UPDATE_GOLDEN=1 writes it anew)', () => {
    if (process.env['UPDATE_GOLDEN'] === '1') writeFileSync(page, errorsMarkdown());
    assert.equal(errorsMarkdown(), readFileSync(page, 'utf8'));
  });

  for (const code of errorCodes) {
    it(`explains ${code} in sentences that fit into a table`, () => {
      const { meaning, remedy } = factsOfCode(code);
      for (const text of [meaning, ...(remedy === undefined ? [] : [remedy])]) assert.match(text, /^[A-Z][^|\n]*\.$/);
    });
  }
});
