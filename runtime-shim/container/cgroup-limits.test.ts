import assert from 'node:assert/strict';
import { parseRuntimeConfig, type SpecResources } from '../../oci-spec/runtime-config.js';
import { v1Writes, v2Writes } from './cgroup-limits.js';

function resources(document: object): SpecResources {
  return parseRuntimeConfig(JSON.stringify({ root: { path: 'r' }, linux: { resources: document } })).linux!.resources!;
}

const some = resources({
  memory: { limit: 1000, swap: 3000, reservation: 500, swappiness: 0 },
  cpu: { shares: 1024, quota: 50000, period: 100000, cpus: '0-1' },
  pids: { limit: 64 },
  blockIO: { throttleReadBpsDevice: [{ major: 8, minor: 0, rate: 1048576 }] },
});

describe('limits of a cgroup', () => {
  it('become the files of v1, by controller', () => {
    const writes = v1Writes(some);
    assert.deepEqual(writes.get('memory'), [
      { file: 'memory.limit_in_bytes', text: '1000' },
      { file: 'memory.memsw.limit_in_bytes', text: '3000' },
      { file: 'memory.soft_limit_in_bytes', text: '500' },
      { file: 'memory.swappiness', text: '0' },
    ]);
    assert.deepEqual(writes.get('pids'), [{ file: 'pids.max', text: '64' }]);
    assert.deepEqual(writes.get('blkio'), [{ file: 'blkio.throttle.read_bps_device', text: '8:0 1048576' }]);
  });

  it('become the files of v2, where swap is counted alone', () => {
    const writes = new Map(
      v2Writes(some, ['memory', 'cpu', 'cpuset', 'pids', 'io']).map(({ file, text }) => [file, text]),
    );
    assert.equal(writes.get('memory.swap.max'), '2000');
    assert.equal(writes.get('cpu.weight'), '39');
    assert.equal(writes.get('cpu.max'), '50000 100000');
    assert.equal(writes.get('io.max'), '8:0 rbps=1048576');
  });

  it('write nothing for what is not limited, and "max" for what is explicitly not', () => {
    assert.deepEqual(v2Writes(resources({}), []), []);
    assert.deepEqual(v2Writes(resources({ pids: { limit: -1 } }), ['pids']), [{ file: 'pids.max', text: 'max' }]);
  });

  it('are refused where the controller is missing', () => {
    assert.throws(() => v2Writes(some, ['pids']), /the memory cgroup controller is not available/);
    assert.throws(() => v2Writes(resources({ unified: { 'a/b': '1' } }), []), /must be a file name/);
  });
});
