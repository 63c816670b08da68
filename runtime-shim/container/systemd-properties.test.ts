import assert from 'node:assert/strict';
import { parseRuntimeConfig } from '../../oci-spec/runtime-config.js';
import { reduceDeviceRules } from './device-program.js';
import { deviceProperties, resourceProperties } from './systemd-properties.js';

const infinity = 0xffff_ffff_ffff_ffffn;

function properties(resources: unknown, cgroupVersion: 1 | 2 = 2, systemdVersion = 252): Record<string, unknown> {
  const spec = parseRuntimeConfig(JSON.stringify({ root: { path: 'r' }, linux: { resources } }));
  const all = resourceProperties({ resources: spec.linux!.resources, cgroupVersion, systemdVersion });
  return Object.fromEntries(
    all.filter(([name]) => !name.endsWith('Accounting')).map(([name, { value }]) => [name, value]),
  );
}

describe('properties of scopes', () => {
  it('are the limits of the spec', () => {
    const resources = {
      memory: { limit: 1 << 30, swap: 1 << 30, reservation: 1 << 20 },
      cpu: { shares: 1024, quota: 25_001, period: 50_000, cpus: '0-2,8', mems: '0' },
      pids: { limit: 7 },
      blockIO: { weight: 100 },
    };
    const common = { CPUQuotaPerSecUSec: 510_000n, CPUQuotaPeriodUSec: 50_000n, TasksMax: 7n };
    assert.deepEqual(properties(resources), {
      ...common,
      MemoryMax: 1n << 30n,
      MemorySwapMax: 0n,
      MemoryLow: 1n << 20n,
      CPUWeight: 39n,
      AllowedCPUs: [7, 1],
      AllowedMemoryNodes: [1],
    });
    assert.deepEqual(properties(resources, 1), {
      ...common,
      MemoryLimit: 1n << 30n,
      CPUShares: 1024n,
      BlockIOWeight: 100n,
    });
    assert.deepEqual(properties(resources, 1, 239), {
      CPUQuotaPerSecUSec: 510_000n,
      TasksMax: 7n,
      MemoryLimit: 1n << 30n,
      CPUShares: 1024n,
      BlockIOWeight: 100n,
    });
    assert.equal('AllowedCPUs' in properties(resources, 2, 239), false);
  });

  it('say that there is no limit, or nothing', () => {
    assert.deepEqual(properties({}), {});
    assert.deepEqual(properties({ pids: { limit: -1 }, memory: { limit: -1 }, cpu: { quota: -1 } }), {
      TasksMax: infinity,
      MemoryMax: infinity,
      MemorySwapMax: infinity,
      CPUQuotaPerSecUSec: infinity,
      CPUQuotaPeriodUSec: 100_000n,
    });
  });

  it('come from the names of files, too', () => {
    const unified = { 'memory.high': '4096', 'pids.max': 'max', 'cpu.max': '50000 100000', 'cpuset.cpus': '1' };
    assert.deepEqual(properties({ unified }), {
      MemoryHigh: 4096n,
      TasksMax: infinity,
      CPUQuotaPerSecUSec: 500_000n,
      CPUQuotaPeriodUSec: 100_000n,
      AllowedCPUs: [2],
    });
    assert.throws(() => properties({ cpu: { cpus: '3-1' } }), /no list of numbers for AllowedCPUs: "3-1"/);
    assert.throws(() => properties({ cpu: { cpus: '99999' } }), /no list of numbers/);
  });

  it('allow the devices of the rules', () => {
    const devices = 'Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n';
    const rule = { allow: true, type: 'c', permissions: 'rwm' };
    const policy = reduceDeviceRules([
      { ...rule, major: 1, minor: 3 },
      { ...rule, major: 136, minor: -1 },
      { ...rule, major: -1, minor: -1, permissions: 'm' },
      { ...rule, type: 'b', major: 8, minor: -1, permissions: 'r' },
      // Nothing that systemd has words for.
      { ...rule, major: 99, minor: -1 },
      { ...rule, major: -1, minor: 5 },
    ]);
    assert.deepEqual(deviceProperties(policy, devices), [
      ['DevicePolicy', { signature: 's', value: 'strict' }],
      [
        'DeviceAllow',
        {
          signature: 'a(ss)',
          value: [
            ['/dev/char/1:3', 'rwm'],
            ['char-pts', 'rwm'],
            ['char-*', 'm'],
            ['block-sd', 'r'],
          ],
        },
      ],
    ]);
    const everything = reduceDeviceRules([{ ...rule, type: 'a', major: -1, minor: -1 }]);
    assert.deepEqual(deviceProperties(everything, devices), [
      ['DevicePolicy', { signature: 's', value: 'auto' }],
      ['DeviceAllow', { signature: 'a(ss)', value: [] }],
    ]);
  });
});
