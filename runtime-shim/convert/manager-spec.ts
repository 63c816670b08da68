// What managers look for in a spec, and beside it.
import { lstatSync } from 'node:fs';
import {
  formatBindMounts,
  kManagerAnnotation,
  kNameAnnotation,
  type ConfigDump,
  type Dialect,
} from '../../oci-spec/checkpoint-archive.js';
import { parseJson, stringifyJson } from '../../oci-spec/json.js';
import { isBindMount } from '../../oci-spec/mount-options.js';
import { parseRuntimeConfig } from '../../oci-spec/runtime-config.js';

/** The annotations by which a manager knows a container as its own. */
export function specFor(to: Dialect, text: string, config: ConfigDump): string {
  const spec = parseJson(text) as { annotations?: Record<string, string> };
  const annotations = { ...spec.annotations };
  const pod = annotations['io.kubernetes.pod.name'] ?? annotations['io.kubernetes.cri.sandbox-name'];
  const namespace = annotations['io.kubernetes.pod.namespace'] ?? annotations['io.kubernetes.cri.sandbox-namespace'];
  delete annotations[kManagerAnnotation];
  delete annotations[kNameAnnotation];
  if (to === 'podman') annotations[kManagerAnnotation] = 'libpod';
  if (to === 'cri-o') {
    annotations[kManagerAnnotation] = 'cri-o';
    annotations['io.kubernetes.cri-o.Annotations'] ??= '{}';
    annotations['io.kubernetes.cri-o.Labels'] ??= '{}';
    annotations['io.kubernetes.cri-o.Metadata'] ??= JSON.stringify({ name: config.name });
    annotations['io.kubernetes.cri-o.Created'] ??= config.createdTime;
    if (pod !== undefined) annotations['io.kubernetes.pod.name'] = pod;
    if (namespace !== undefined) annotations['io.kubernetes.pod.namespace'] = namespace;
  }
  if (to === 'containerd' || to === 'stasis') annotations[kNameAnnotation] = config.name;
  if (to === 'containerd') {
    annotations['io.kubernetes.cri.container-type'] ??= 'container';
    annotations['io.kubernetes.cri.image-name'] ??= config.rootfsImageName;
    if (pod !== undefined) annotations['io.kubernetes.cri.sandbox-name'] = pod;
    if (namespace !== undefined) annotations['io.kubernetes.cri.sandbox-namespace'] = namespace;
  }
  return stringifyJson({ ...spec, annotations });
}

export function bindMountsOf(specText: string): string {
  const mounts = parseRuntimeConfig(specText).mounts.filter((mount) => isBindMount(mount.options));
  return formatBindMounts(
    mounts.map(({ source, destination }) => {
      const stat = lstatSync(source, { throwIfNoEntry: false });
      return {
        source,
        destination,
        fileType: stat?.isFile() === true ? ('file' as const) : ('directory' as const),
        permissions: (stat?.mode ?? 0o755) & 0o777,
      };
    }),
  );
}
