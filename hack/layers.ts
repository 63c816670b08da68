// Who may use whom: the layer table of ARCHITECTURE.md as data, for
// hack/check.ts. A layer is a folder or a file; the longest match counts.

export type LayerTable = Readonly<Record<string, readonly string[]>>;

const shimParts = [
  'runtime-shim/errors',
  'runtime-shim/engine',
  'runtime-shim/container',
  'runtime-shim/archive',
] as const;

/** TypeScript imports. */
export const mayImport: LayerTable = {
  'oci-spec': ['oci-spec/protobuf'],
  // The codec and nothing else: docs/design/0007.
  'oci-spec/protobuf': [],
  nativecore: ['oci-spec/protobuf', 'nativecore/schema'],
  'nativecore/schema': ['oci-spec/protobuf'],
  'runtime-shim/errors': [],
  // Pure functions: of the native side the engine knows only the generated types.
  'runtime-shim/engine': ['oci-spec', 'oci-spec/protobuf', 'nativecore/schema', 'runtime-shim/errors'],
  'runtime-shim/container': [
    'oci-spec',
    'nativecore',
    'nativecore/schema',
    'runtime-shim/errors',
    'runtime-shim/engine',
  ],
  'runtime-shim/archive': ['oci-spec', 'nativecore', 'runtime-shim/errors'],
  // The two sequences, and what they share.
  'runtime-shim': ['oci-spec', 'oci-spec/protobuf', 'nativecore', 'nativecore/schema', ...shimParts],
  cmd: ['oci-spec', 'runtime-shim', ...shimParts],
  'e2e/support': [],
  e2e: ['e2e/support'],
  hack: ['oci-spec', 'e2e/support'],
};

/** #include between folders of nativecore. */
export const mayInclude: LayerTable = {
  'nativecore/base': [],
  'nativecore/schema': [],
  'nativecore/proc': ['nativecore/base'],
  'nativecore/trace': ['nativecore/proc', 'nativecore/base'],
  'nativecore/parasite': ['nativecore/trace', 'nativecore/proc', 'nativecore/base'],
  'nativecore/capture': ['nativecore/parasite', 'nativecore/trace', 'nativecore/proc', 'nativecore/base'],
  'nativecore/executor': ['nativecore/trace', 'nativecore/proc', 'nativecore/base'],
  'nativecore/binding': ['nativecore/base'],
  'nativecore/launcher': ['nativecore/base'],
  'nativecore/program': ['nativecore/capture', 'nativecore/trace', 'nativecore/proc', 'nativecore/base'],
  'nativecore/core_main.cc': ['nativecore/capture', 'nativecore/executor', 'nativecore/program', 'nativecore/base'],
};

/**
 * Where system calls are made by name: the wrappers, the tracer, programs that
 * link no library of ours, and code that runs in a fresh child or on shared
 * memory, where an exception of a wrapper would have nobody to catch it.
 */
export const rawSystemCallPlaces = [
  'nativecore/base/sys.cc',
  'nativecore/trace/',
  'nativecore/launcher/',
  'nativecore/program/',
  'nativecore/binding/',
  'nativecore/capture/paused_container.cc',
];
