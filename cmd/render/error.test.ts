import assert from 'node:assert/strict';
import { StasisError } from '../../runtime-shim/errors/index.js';
import { errorDetails, errorSentence } from './error.js';
import { logRecord } from './log.js';

const error = new StasisError({
  code: 'CAPTURE_FD_UNSUPPORTED',
  message: 'cannot checkpoint container "web": fd 7 of pid 4711 (nginx) is an io_uring instance',
  subject: { hostPid: 4711, nsPid: 12, targetFd: 7, path: 'anon_inode:[io_uring]' },
  why: 'rings shared with the kernel cannot be read from outside the process',
  hint: 'let the process close its rings first',
});

describe('rendered errors', () => {
  it('end in one sentence with the remedy', () => {
    assert.equal(
      errorSentence(error),
      'cannot checkpoint container "web": fd 7 of pid 4711 (nginx) is an io_uring instance; let the process close its rings first',
    );
  });

  it('say where, why, what next and the code, in this order', () => {
    assert.deepEqual(errorDetails(error, false), [
      '  where  pid 4711 (container pid 12), fd 7, anon_inode:[io_uring]',
      '  why    rings shared with the kernel cannot be read from outside the process',
      '  next   let the process close its rings first',
      '  code   CAPTURE_FD_UNSUPPORTED',
    ]);
  });

  it('list all blockers', () => {
    const several = new StasisError({ code: 'CAPTURE_FD_UNSUPPORTED', message: 'two', objections: [error, error] });
    assert.equal(errorDetails(several, false).filter((line) => line.startsWith('- ')).length, 2);
  });

  it('keep control characters of names away from the terminal', () => {
    const evil = new StasisError({ code: 'ENVIRONMENT', message: 'cannot open "\u001b[31mred\nline"' });
    assert.equal(errorSentence(evil), 'cannot open "?[31mred line"');
  });
});

describe('log records', () => {
  const time = new Date('2026-01-02T03:04:05.678Z');
  it('are one JSON object per line, as runc writes them', () => {
    assert.equal(
      logRecord('json', 'error', 'a "b"', time),
      '{"level":"error","msg":"a \\"b\\"","time":"2026-01-02T03:04:05Z"}\n',
    );
  });
  it('are key=value in the text format', () => {
    assert.equal(
      logRecord('text', 'error', 'a "b"', time),
      'time="2026-01-02T03:04:05Z" level=error msg="a \\"b\\""\n',
    );
  });
});
