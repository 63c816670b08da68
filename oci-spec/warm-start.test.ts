import assert from 'node:assert/strict';
import { listensAt, parseWarmCondition } from './warm-start.js';

describe('annotations of a warm start', () => {
  it('are read in their four forms', () => {
    assert.deepEqual(parseWarmCondition('tcp:8080'), { kind: 'tcp', port: 8080 });
    assert.deepEqual(parseWarmCondition('file:/run/ready'), { kind: 'file', path: '/run/ready' });
    assert.deepEqual(parseWarmCondition('log:^ready: \\d+$'), { kind: 'log', pattern: /^ready: \d+$/ });
    assert.deepEqual(parseWarmCondition('seconds:1.5'), { kind: 'seconds', seconds: 1.5 });
  });

  for (const text of ['', 'tcp:', 'tcp:0', 'tcp:65536', 'tcp:http', 'file:ready', 'log:(', 'seconds:-1', 'soon:1']) {
    it(`are refused as ${JSON.stringify(text)}`, () => {
      assert.throws(() => parseWarmCondition(text), /org\.stasis\.checkpoint-when is /);
    });
  }

  it('find the socket that listens, and no other', () => {
    const table = [
      '  sl  local_address rem_address   st tx_queue rx_queue',
      '   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000',
      '   1: 0100007F:0050 0100007F:9C40 01 00000000:00000000',
    ].join('\n');
    assert.equal(listensAt(table, 8080), true);
    assert.equal(listensAt(table, 80), false, 'it is a connection');
    assert.equal(listensAt('', 8080), false);
  });
});
