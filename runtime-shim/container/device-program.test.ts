import assert from 'node:assert/strict';
import type { DeviceRule } from '../../oci-spec/devices.js';
import { parseRuntimeConfig, type RuntimeConfig } from '../../oci-spec/runtime-config.js';
import { allowsDevice, deviceFileWrites, deviceProgram, reduceDeviceRules } from './device-program.js';

const rule = (allow: boolean, type: string, major: number, minor: number, permissions: string): DeviceRule => ({
  allow,
  type,
  major,
  minor,
  permissions,
});

/** Runs the program as the kernel would, for the handful of instructions that it uses. */
function ask(program: Buffer, type: 'b' | 'c', major: number, minor: number, access: string): boolean {
  const bits = [...access].reduce((sum, letter) => sum | ({ m: 1, r: 2, w: 4 }[letter] ?? 0), 0);
  const context = [(bits << 16) | (type === 'b' ? 1 : 2), major, minor];
  const registers = new Array<number>(8).fill(0);
  for (let at = 0; at < program.length / 8; at += 1) {
    const code = program.readUInt8(at * 8);
    const destination = program.readUInt8(at * 8 + 1) & 15;
    const source = program.readUInt8(at * 8 + 1) >> 4;
    const offset = program.readInt16LE(at * 8 + 2);
    const immediate = program.readInt32LE(at * 8 + 4);
    if (code === 0x61) registers[destination] = context[offset / 4]!;
    else if (code === 0xbf) registers[destination] = registers[source]!;
    else if (code === 0xb7) registers[destination] = immediate;
    else if (code === 0x54) registers[destination]! &= immediate;
    else if (code === 0x74) registers[destination]! >>>= immediate;
    else if (code === 0x55) at += registers[destination] === immediate ? 0 : offset;
    else if (code === 0x15) at += registers[destination] === immediate ? offset : 0;
    else if (code === 0x95) return registers[0] === 1;
    else throw new Error(`unknown instruction ${code}`);
  }
  throw new Error('the program has no end');
}

describe('device rules', () => {
  const containerRules = [
    rule(false, 'a', -1, -1, 'rwm'),
    rule(true, 'c', -1, -1, 'm'),
    rule(true, 'c', 1, 3, 'rw'),
    rule(true, 'c', 1, 3, 'm'),
    rule(true, 'c', 136, -1, 'rwm'),
    rule(true, 'c', 10, 5, 'r'),
  ];

  it('add up per device and start from "deny all"', () => {
    const policy = reduceDeviceRules(containerRules);
    assert.equal(policy.allowByDefault, false);
    assert.deepEqual(policy.exceptions[1], { type: 'c', major: 1, minor: 3, permissions: 'rwm' });
    assert.deepEqual(reduceDeviceRules([]), { allowByDefault: false, exceptions: [] });
  });

  it('take away from what was allowed before', () => {
    const policy = reduceDeviceRules([...containerRules, rule(false, 'c', 1, 3, 'w')]);
    assert.deepEqual(policy.exceptions.find(({ major, minor }) => major === 1 && minor === 3)?.permissions, 'rm');
  });

  it('say which nodes a root file system may have', () => {
    const spec = (devices: readonly object[], rules: readonly object[]): RuntimeConfig =>
      parseRuntimeConfig(JSON.stringify({ root: { path: 'r' }, linux: { devices, resources: { devices: rules } } }));
    const deny = { allow: false, access: 'rwm' };
    const may = (config: RuntimeConfig, type: 'b' | 'c', major: number, minor: number): boolean =>
      allowsDevice(config, { type, major, minor });
    const narrow = spec(
      [{ path: '/dev/fuse', type: 'c', major: 10, minor: 229 }],
      [deny, { allow: true, type: 'b', major: 8, access: 'r' }],
    );
    assert.deepEqual([may(narrow, 'c', 1, 3), may(narrow, 'c', 10, 229), may(narrow, 'b', 8, 1)], [true, true, true]);
    // Of everything runc allows to make the node, which opens nothing.
    assert.deepEqual([may(narrow, 'c', 1, 1), may(narrow, 'b', 9, 0), may(narrow, 'c', 8, 1)], [false, false, false]);
    assert.equal(may(spec([], []), 'b', 8, 0), false);
    const privileged = spec(
      [],
      [
        { allow: true, access: 'rwm' },
        { allow: false, type: 'c', major: 1, minor: 1, access: 'rwm' },
      ],
    );
    assert.deepEqual([may(privileged, 'b', 8, 0), may(privileged, 'c', 1, 1)], [true, false]);
  });

  it('become lines for cgroup v1', () => {
    assert.deepEqual(deviceFileWrites(reduceDeviceRules(containerRules)).slice(0, 2), [
      { file: 'devices.deny', text: 'a *:* rwm' },
      { file: 'devices.allow', text: 'c *:* m' },
    ]);
  });

  it('become a program for cgroup v2 that answers as the rules say', () => {
    const program = deviceProgram(reduceDeviceRules(containerRules));
    assert.equal(ask(program, 'c', 1, 3, 'rw'), true);
    assert.equal(ask(program, 'c', 10, 5, 'r'), true);
    assert.equal(ask(program, 'c', 10, 5, 'rw'), false);
    assert.equal(ask(program, 'c', 136, 77, 'w'), true);
    assert.equal(ask(program, 'c', 9, 9, 'm'), true);
    assert.equal(ask(program, 'c', 9, 9, 'r'), false);
    assert.equal(ask(program, 'b', 1, 3, 'r'), false);
  });

  it('deny single devices where everything else is allowed', () => {
    const program = deviceProgram(reduceDeviceRules([rule(true, 'a', -1, -1, 'rwm'), rule(false, 'b', 8, 0, 'w')]));
    assert.equal(ask(program, 'b', 8, 0, 'r'), true);
    assert.equal(ask(program, 'b', 8, 0, 'rw'), false);
    assert.equal(ask(program, 'b', 8, 1, 'rw'), true);
  });
});
