import assert from 'node:assert/strict';
import type { ConfigDump } from '../../oci-spec/checkpoint-archive.js';
import { alterPodmanConfig, podmanContainer, type PodmanContainer, type PodmanWishes } from './podman-container.js';

const config: ConfigDump = {
  id: 'web',
  name: 'web',
  rootfsImage: '',
  rootfsImageRef: '',
  rootfsImageName: 'localhost/box:latest',
  runtime: 'runc',
  createdTime: '2026-01-02T03:04:05Z',
  checkpointedTime: '',
};
const noWishes: PodmanWishes = {
  name: undefined,
  image: undefined,
  imageId: undefined,
  runtime: undefined,
  network: undefined,
};
const root = '"ociVersion":"1.0.2","root":{"path":"/b/rootfs","readonly":true}';

function convert(
  spec = `{${root}}`,
  changes: Partial<ConfigDump> = {},
  wishes: Partial<PodmanWishes> = {},
): PodmanContainer {
  const source = { path: '/a.tar', hasDevShm: false };
  return podmanContainer({ ...config, ...changes }, spec, source, { ...noWishes, ...wishes });
}
const settings = (made: PodmanContainer): Record<string, unknown> => JSON.parse(made.config) as Record<string, unknown>;
const specOf = (namespaces: readonly object[], more: object = {}): string =>
  `{${root},"linux":${JSON.stringify({ cgroupsPath: '/old', namespaces })},${JSON.stringify(more).slice(1)}`.replace(
    /,}$/,
    '}',
  );

describe("podman's settings of a container", () => {
  it('keep every number of the spec, and what it grants', () => {
    const rlimits = '[{"type":"RLIMIT_NPROC","hard":18446744073709551615,"soft":18446744073709551615}]';
    const process = `"process":{"args":["a"],"cwd":"/","user":{"uid":7,"gid":8,"additionalGids":[9]},"rlimits":${rlimits}}`;
    const made = convert(`{${root},${process}}`);
    assert.ok(made.spec.includes(`"rlimits":${rlimits}`), made.spec);
    assert.match(made.spec, /"root":\{"path":"rootfs","readonly":true\}/);
    const { user, groups, command } = settings(made);
    assert.deepEqual([user, groups, command], ['7:8', ['9'], ['a']]);
  });

  it('have the image by its digest or id where the source says one', () => {
    const image = (changes: Partial<ConfigDump>, wishes: Partial<PodmanWishes> = {}): unknown[] => {
      const { rootfsImageName, rootfsImageID } = settings(convert(undefined, changes, wishes));
      return [rootfsImageName, rootfsImageID];
    };
    const digits = '0123456789abcdef'.repeat(4);
    const name = config.rootfsImageName;
    const pinned = `docker.io/library/box@sha256:${digits}`;
    assert.deepEqual(image({}), [name, name]);
    assert.deepEqual(image({ rootfsImageRef: digits }), [name, digits]);
    assert.deepEqual(image({ rootfsImageRef: `sha256:${digits}` }), [name, digits]);
    assert.deepEqual(image({ rootfsImageRef: pinned }), [pinned, pinned]);
    assert.deepEqual(image({ rootfsImageRef: digits }, { image: 'quay.io/x:1' }), ['quay.io/x:1', 'quay.io/x:1']);
    assert.deepEqual(image({}, { image: 'quay.io/x:1', imageId: digits }), ['quay.io/x:1', digits]);
    const tells = (changes: Partial<ConfigDump>): boolean =>
      convert(undefined, changes).notes.some((note) => note.includes('give it with --image-id'));
    assert.deepEqual(
      [tells({}), tells({ rootfsImageRef: pinned }), tells({ rootfsImageRef: digits })],
      [true, true, false],
    );
  });

  it('have an id of 64 digits, the same for the same checkpoint', () => {
    const id = (changes: Partial<ConfigDump>): unknown => settings(convert(undefined, changes))['id'];
    const digits = 'ab'.repeat(32);
    assert.equal(id({ id: digits }), digits);
    assert.match(String(id({})), /^[0-9a-f]{64}$/);
    assert.equal(id({}), id({}));
    assert.notEqual(id({}), id({ createdTime: '2026-01-02T03:04:06Z' }));
  });

  it('have the network that the container had, as far as podman can give it', () => {
    const network = (spec?: string, wishes: Partial<PodmanWishes> = {}): unknown[] => {
      const { createNetNS, networkMode, newNetworks } = settings(convert(spec, {}, wishes));
      return [createNetNS, networkMode, Object.keys((newNetworks as object) ?? {})];
    };
    const joined = specOf([{ type: 'network', path: '/run/netns/a' }]);
    assert.deepEqual(network(), [false, 'host', []]);
    assert.deepEqual(network(specOf([{ type: 'network' }])), [false, undefined, []]);
    assert.deepEqual(network(joined), [true, 'bridge', ['podman']]);
    assert.deepEqual(network(joined, { network: 'web' }), [true, 'bridge', ['web']]);
    assert.throws(() => network(specOf([{ type: 'network' }]), { network: 'web' }), /cannot join web/);
  });

  it('leave what belongs to the old machine and its manager, and say so', () => {
    const bind = (source: string, destination: string): object => ({ source, destination, options: ['rbind', 'ro'] });
    const made = convert(
      specOf([{ type: 'ipc', path: '/proc/1/ns/ipc' }, { type: 'mount' }], {
        mounts: [
          { destination: '/proc', type: 'proc', source: 'proc' },
          bind('/var/lib/docker/hosts', '/etc/hosts'),
          bind('/var/lib/docker/shm', '/dev/shm/'),
          bind('/srv', '/data'),
        ],
        hooks: {
          prestart: [{ path: '/proc/1/exe', args: ['libnetwork-setkey', '-exec-root=/var/run/docker'] }],
          poststop: [{ path: '/bin/notify' }],
        },
        annotations: { 'io.kubernetes.cri.container-name': 'web', 'org.opencontainers.image.stopSignal': 'SIGQUIT' },
      }),
      { createdTime: '', rootfsImageRef: 'ab'.repeat(32) },
      { runtime: '/opt/bin/stasis' },
    );
    const spec = JSON.parse(made.spec) as {
      mounts: { destination: string }[];
      linux: object;
      hooks: object;
      annotations: object;
    };
    assert.deepEqual(
      spec.mounts.map(({ destination }) => destination),
      ['/proc', '/data'],
    );
    assert.deepEqual(spec.linux, { namespaces: [{ type: 'ipc' }, { type: 'mount' }] });
    assert.deepEqual(spec.hooks, { prestart: [], poststop: [{ path: '/bin/notify' }] });
    assert.deepEqual(spec.annotations, {
      'io.container.manager': 'libpod',
      'org.opencontainers.image.stopSignal': 'SIGQUIT',
    });
    const { stopSignal, createdTime, runtime } = settings(made);
    assert.deepEqual([stopSignal, createdTime, runtime], [3, '0001-01-01T00:00:00Z', '/opt/bin/stasis']);
    assert.deepEqual(made.notes.slice(1), [
      'it gets namespaces of its own in place of those that it shared: ipc',
      '/dev/shm is empty: it was another mount of its manager, whose content is not in the source',
      'podman writes its own /etc/hosts',
      'these have to be on the machine that restores: /srv (for /data)',
      'its hooks are run there as well: /bin/notify',
    ]);
  });

  it('are refused where podman cannot make such a container', () => {
    assert.throws(() => convert(undefined, { rootfsImageName: '' }), /and the source says none/);
    assert.throws(() => convert(undefined, { rootfsImageName: 'box' }), /"box" is no full name of an image/);
    assert.throws(() => convert('{"root":7}'), /cannot read \/a.tar: spec.dump: .*must be/);
    assert.throws(() => convert(undefined, { name: 'a/b' }), /"a\/b" is no name for podman/);
    assert.throws(() => convert(specOf([{ type: 'user' }])), /its user namespace is not the host's/);
    assert.throws(() => convert(specOf([{ type: 'pid', path: '/proc/1/ns/pid' }])), /shares the pid namespace/);
  });

  it('that are its own already change where it is wished, and nowhere else', () => {
    const text = '{"spec":{"hard":18446744073709551615},"name":"a","runtime":"runc","rootfsImageID":"1","x":"<"}';
    const changed = alterPodmanConfig(text, { ...noWishes, name: 'b', runtime: 'stasis' }).config;
    assert.ok(changed.includes('18446744073709551615'));
    assert.deepEqual(JSON.parse(changed.replace('18446744073709551615', '1')), {
      spec: { hard: 1 },
      name: 'b',
      runtime: 'stasis',
      rootfsImageID: '1',
      x: '<',
    });
  });
});
