// Fixtures: config.json of a bundle and the state.json that runc 1.1.5 wrote
// for it (runc create). Ours must be the same text but for the process.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { toLibcontainerConfig } from './libcontainer-config.js';
import { parseJson } from './json.js';
import { formatRuncState, parseRuncState } from './runc-state.js';
import { parseRuntimeConfig } from './runtime-config.js';

const fixtures = new URL('../../../oci-spec/fixtures/', import.meta.url);

interface Fixture {
  readonly id: string;
  readonly bundle: string;
  readonly config: string;
  readonly state: string;
}

describe('runc state.json', () => {
  for (const name of readdirSync(fixtures).filter((file) => file.startsWith('runc-1.1.5-'))) {
    const fixture = parseJson(readFileSync(new URL(name, fixtures), 'utf8')) as Fixture;

    it(`is written as runc 1.1.5 wrote it: ${name}`, () => {
      const state = parseRuncState(fixture.state);
      const ours = formatRuncState({
        id: fixture.id,
        initHostPid: state.initHostPid,
        initStartTicks: state.initStartTicks,
        created: new Date(0),
        config: toLibcontainerConfig({
          spec: parseRuntimeConfig(fixture.config),
          id: fixture.id,
          bundle: fixture.bundle,
          systemdCgroup: false,
          noPivotRoot: false,
          noNewKeyring: false,
          dialect: '1.1',
          specVersion: '1.0.2-dev',
        }),
        cgroupPaths: state.cgroupPaths,
        externalDescriptors: state.externalDescriptors,
        kernelNamespaces: new Set(['user', 'ipc', 'uts', 'net', 'pid', 'mnt', 'cgroup', 'time']),
      });
      const withoutTime = (text: string): string => text.replace(/"created":"[^"]*"/, '"created":""');
      assert.equal(withoutTime(ours), withoutTime(fixture.state));
    });
  }

  it('says which field is wrong', () => {
    assert.throws(() => parseRuncState('{"id":7,"config":{}}'), /id must be a string, is a number/);
    assert.throws(() => parseRuncState('{"id":"x"}'), /config is missing/);
    assert.throws(() => parseRuncState('{'), /is not JSON/);
  });
});
