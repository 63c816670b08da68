// Fixture: config.json of a bundle and the status that crun 1.28 wrote for it
// (crun run), with other paths and a time in milliseconds. Ours must be the same text.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { crunCgroupPlace, formatCrunStatus, parseCrunStatus } from './crun-status.js';
import { parseRuntimeConfig } from './runtime-config.js';

const fixture = JSON.parse(
  readFileSync(new URL('../../../oci-spec/fixtures/crun-1.28-default.json', import.meta.url), 'utf8'),
) as { id: string; bundle: string; config: string; status: string };
const spec = parseRuntimeConfig(fixture.config);
const read = (status: string): ReturnType<typeof parseCrunStatus> =>
  parseCrunStatus(status, fixture.id, spec, '/sys/fs/cgroup');

describe('crun status', () => {
  it('is written as crun 1.28 wrote it', () => {
    const state = read(fixture.status);
    const ours = formatCrunStatus({
      scope: undefined,
      initHostPid: state.initHostPid,
      initStartTicks: state.initStartTicks,
      created: new Date(state.created),
      cgroupPath: crunCgroupPlace(spec, fixture.id).path,
      rootfs: spec.root.path,
      bundle: fixture.bundle,
      owner: 'root',
      detached: true,
      externalDescriptors: state.externalDescriptors,
    });
    assert.equal(ours, fixture.status);
  });

  it('is read together with config.json', () => {
    const state = read(fixture.status);
    assert.equal(state.rootfs, '/bundles/x/rootfs');
    assert.deepEqual([...state.cgroupPaths], [['', '/sys/fs/cgroup/pod/x']]);
    assert.deepEqual(state.externalDescriptors, ['/dev/null', '/log/out', '/log/err']);
    assert.equal(state.namespaces.get('NEWNET'), '');
    assert.equal(state.needsRuntimeToDelete, false);
    assert.deepEqual(state.annotations, { a: 'b' });
  });

  it('never takes the root of the hierarchy for the container', () => {
    for (const path of ['\\/', '', '\\/..', '.', '\\/a\\/..'])
      assert.equal(read(fixture.status.replace('\\/pod\\/x', path)).cgroupPaths.size, 0, path);
    assert.deepEqual(
      [...read(fixture.status.replace('\\/pod\\/x', '..\\/..\\/etc')).cgroupPaths.values()],
      ['/sys/fs/cgroup/etc'],
    );
  });

  it('says which field is wrong', () => {
    assert.throws(() => read('{"bundle":"/b","rootfs":"r","pid":"7"}'), /pid must be an integer, is a string/);
    assert.throws(
      () => read('{"bundle":"/b","rootfs":"r","pid":7,"external_descriptors":"[7]"}'),
      /external_descriptors is no list: \[0\] must be a string|external_descriptors is no list/,
    );
    assert.throws(() => read('{'), /is not JSON/);
  });

  it('puts a container below the root of the hierarchy, as crun does', () => {
    const at = (cgroupsPath: string | undefined): string =>
      crunCgroupPlace(parseRuntimeConfig(JSON.stringify({ root: { path: 'r' }, linux: { cgroupsPath } })), 'c1').path;
    assert.equal(at('/a/b'), '/a/b');
    assert.equal(at('a/b'), '/a/b');
    assert.equal(at(undefined), '/c1');
    assert.equal(at('../../b'), '/b');
  });
});
