// What a runtime wrote down about a container that it made, in the words that
// runc's state.json and crun's status have in common.

export interface RecordedMount {
  readonly source: string;
  readonly destination: string;
  /** File system type, or "bind". */
  readonly device: string;
  readonly flags: number;
}

export interface ContainerRecord {
  readonly id: string;
  readonly initHostPid: number;
  readonly initStartTicks: bigint;
  readonly created: string;
  readonly rootfs: string;
  readonly bundle: string;
  readonly annotations: Readonly<Record<string, string>>;
  readonly ociVersion: string;
  readonly mounts: readonly RecordedMount[];
  readonly devicePaths: readonly string[];
  readonly maskPaths: readonly string[];
  /** "NEWNET" -> path, "" if the namespace is the container's own. */
  readonly namespaces: ReadonlyMap<string, string>;
  /** Controller -> absolute path; "" is the unified hierarchy. */
  readonly cgroupPaths: ReadonlyMap<string, string>;
  readonly systemdCgroup: boolean;
  readonly noPivotRoot: boolean;
  readonly noNewKeyring: boolean;
  readonly externalDescriptors: readonly string[];
  /** There is something that only the runtime itself can take away: poststop hooks, resource control groups. */
  readonly needsRuntimeToDelete: boolean;
}
