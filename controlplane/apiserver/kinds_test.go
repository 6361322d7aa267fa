package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// kindCases are objects as users write them: what the server makes of them (path and value in the answer), and a change
// that it refuses, with the field that it names.
var kindCases = []struct {
	resource, object string
	cluster          bool
	defaulted        map[string]string
	badPatch, field  string
}{
	{resource: "v1/replicationcontrollers", object: `{kind: ReplicationController, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}`,
		defaulted: map[string]string{"spec.selector.a": "b", "spec.replicas": "1", "metadata.labels.a": "b", "metadata.generation": "1"}, badPatch: `{"spec":{"selector":{"a":"c"}}}`, field: "spec.template.metadata.labels"},
	{resource: "autoscaling/v2/horizontalpodautoscalers", object: `{kind: HorizontalPodAutoscaler, spec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: d, apiVersion: apps/v1}}}`,
		defaulted: map[string]string{"spec.minReplicas": "1", "spec.metrics.0.resource.target.averageUtilization": "80"}, badPatch: `{"spec":{"maxReplicas":0}}`, field: "spec.maxReplicas"},
	{resource: "policy/v1/poddisruptionbudgets", object: `{kind: PodDisruptionBudget, spec: {minAvailable: 1}}`, badPatch: `{"spec":{"maxUnavailable":1}}`, field: "spec"},
	{resource: "networking.k8s.io/v1/ingresses", object: `{kind: Ingress, spec: {rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s, port: {number: 80}}}}]}}]}}`, badPatch: `{"spec":{"rules":[{"host":"A_"}]}}`, field: "spec.rules[0].host"},
	{resource: "networking.k8s.io/v1/ingressclasses", cluster: true, object: `{kind: IngressClass, spec: {controller: example.org/c}}`, badPatch: `{"spec":{"controller":"example.org/d"}}`, field: "spec.controller"},
	{resource: "networking.k8s.io/v1/servicecidrs", cluster: true, object: `{kind: ServiceCIDR, spec: {cidrs: [10.200.0.0/24]}}`, badPatch: `{"spec":{"cidrs":["10.200.0.0/25"]}}`, field: "spec.cidrs"},
	{resource: "storage.k8s.io/v1/storageclasses", cluster: true, object: `{kind: StorageClass, provisioner: example.org/p}`, defaulted: map[string]string{"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}, badPatch: `{"provisioner":"example.org/q"}`, field: "provisioner"},
	{resource: "storage.k8s.io/v1/csidrivers", cluster: true, object: `{kind: CSIDriver, spec: {}}`, defaulted: map[string]string{"spec.attachRequired": "true", "spec.fsGroupPolicy": "ReadWriteOnceWithFSType", "spec.volumeLifecycleModes.0": "Persistent"}, badPatch: `{"spec":{"attachRequired":false}}`, field: "spec.attachRequired"},
	{resource: "storage.k8s.io/v1/csinodes", cluster: true, object: `{kind: CSINode, spec: {drivers: [{name: d.example, nodeID: n1, topologyKeys: [a/b]}]}}`, badPatch: `{"spec":{"drivers":[{"name":"d.example","nodeID":"m1","topologyKeys":["a/b"]}]}}`, field: "spec.drivers[0]"},
	{resource: "storage.k8s.io/v1/csistoragecapacities", object: `{kind: CSIStorageCapacity, storageClassName: c, capacity: 1Gi}`, badPatch: `{"storageClassName":"d"}`, field: "storageClassName"},
	{resource: "storage.k8s.io/v1/volumeattachments", cluster: true, object: `{kind: VolumeAttachment, spec: {attacher: a.example, nodeName: n1, source: {persistentVolumeName: v}}}`, badPatch: `{"spec":{"nodeName":"m"}}`, field: "spec"},
	{resource: "storage.k8s.io/v1/volumeattributesclasses", cluster: true, object: `{kind: VolumeAttributesClass, driverName: d.example, parameters: {iops: "1"}}`, badPatch: `{"parameters":{"iops":"2"}}`, field: "parameters"},
	{resource: "node.k8s.io/v1/runtimeclasses", cluster: true, object: `{kind: RuntimeClass, handler: runc}`, badPatch: `{"handler":"other"}`, field: "handler"},
	{resource: "scheduling.k8s.io/v1/priorityclasses", cluster: true, object: `{kind: PriorityClass, value: 5}`, defaulted: map[string]string{"preemptionPolicy": "PreemptLowerPriority"}, badPatch: `{"value":6}`, field: "value"},
	{resource: "coordination.k8s.io/v1/leases", object: `{kind: Lease, spec: {leaseDurationSeconds: 5}}`, badPatch: `{"spec":{"leaseDurationSeconds":0}}`, field: "spec.leaseDurationSeconds"},
	{resource: "flowcontrol.apiserver.k8s.io/v1/flowschemas", cluster: true, object: `{kind: FlowSchema, spec: {priorityLevelConfiguration: {name: global-default}, rules: [{subjects: [{kind: User, user: {name: u}}], resourceRules: [{verbs: [get], apiGroups: ["*"], resources: [pods], namespaces: ["*"]}]}]}}`,
		defaulted: map[string]string{"spec.matchingPrecedence": "1000"}, badPatch: `{"spec":{"matchingPrecedence":1}}`, field: "spec.matchingPrecedence"},
	{resource: "flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations", cluster: true, object: `{kind: PriorityLevelConfiguration, spec: {type: Limited, limited: {limitResponse: {type: Queue, queuing: {}}}}}`,
		defaulted: map[string]string{"spec.limited.nominalConcurrencyShares": "30", "spec.limited.limitResponse.queuing.queues": "64"}, badPatch: `{"spec":{"limited":{"limitResponse":{"queuing":{"handSize":65}}}}}`, field: "spec.limited.limitResponse.queuing.handSize"},
	{resource: "resource.k8s.io/v1/deviceclasses", cluster: true, object: `{kind: DeviceClass, spec: {selectors: [{cel: {expression: device.driver == "d.example"}}]}}`, badPatch: `{"spec":{"selectors":[{"cel":{"expression":"device.driver =="}}]}}`, field: "spec.selectors[0].cel.expression"},
	{resource: "resource.k8s.io/v1/resourceclaims", object: `{kind: ResourceClaim, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: c}}]}}}`, defaulted: map[string]string{"spec.devices.requests.0.exactly.allocationMode": "ExactCount", "spec.devices.requests.0.exactly.count": "1"}, badPatch: `{"spec":{"devices":{"requests":[{"name":"s","exactly":{"deviceClassName":"c"}}]}}}`, field: "spec"},
	{resource: "resource.k8s.io/v1/resourceclaimtemplates", object: `{kind: ResourceClaimTemplate, spec: {spec: {devices: {requests: [{name: r, exactly: {deviceClassName: c}}]}}}}`, badPatch: `{"spec":{"metadata":{"labels":{"a":"b"}}}}`, field: "spec"},
	{resource: "resource.k8s.io/v1/resourceslices", cluster: true, object: `{kind: ResourceSlice, spec: {driver: d.example, nodeName: n1, pool: {name: p, resourceSliceCount: 1}, devices: [{name: d}]}}`, badPatch: `{"spec":{"driver":"e.example"}}`, field: "spec.driver"},
	{resource: "resource.k8s.io/v1/devicetaintrules", cluster: true, object: `{kind: DeviceTaintRule, spec: {taint: {key: k, effect: NoSchedule}}}`, badPatch: `{"spec":{"taint":{"effect":"Never"}}}`, field: "spec.taint.effect"},
	{resource: "admissionregistration.k8s.io/v1/validatingwebhookconfigurations", cluster: true, object: `{kind: ValidatingWebhookConfiguration, webhooks: [{name: a.example.org, sideEffects: None, admissionReviewVersions: [v1], failurePolicy: Ignore, clientConfig: {service: {name: s, namespace: ns1}}, rules: [{operations: [CREATE], apiGroups: [nobody.example], apiVersions: [v1], resources: [things]}]}]}`,
		defaulted: map[string]string{"webhooks.0.timeoutSeconds": "10", "webhooks.0.clientConfig.service.port": "443", "webhooks.0.rules.0.scope": "*"}, badPatch: `{"webhooks":[{"name":"a.example.org","sideEffects":"None","admissionReviewVersions":["v1"],"clientConfig":{"url":"http://x"}}]}`, field: "webhooks[0].clientConfig.url"},
	{resource: "admissionregistration.k8s.io/v1/validatingadmissionpolicies", cluster: true, object: `{kind: ValidatingAdmissionPolicy, spec: {matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [nobody.example], apiVersions: [v1], resources: [things]}]}, variables: [{name: v, expression: "object.spec.a"}], validations: [{expression: "variables.v > 1"}]}}`,
		defaulted: map[string]string{"spec.failurePolicy": "Fail", "spec.matchConstraints.matchPolicy": "Equivalent"}, badPatch: `{"spec":{"validations":[{"expression":"variables.w > 1"}]}}`, field: "spec.validations[0].expression"},
	{resource: "admissionregistration.k8s.io/v1/mutatingadmissionpolicies", cluster: true, object: `{kind: MutatingAdmissionPolicy, spec: {reinvocationPolicy: Never, matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [nobody.example], apiVersions: [v1], resources: [things]}]}, mutations: [{patchType: JSONPatch, jsonPatch: {expression: '[JSONPatch{op: "add", path: "/metadata/labels/a", value: "b"}]'}}]}}`,
		badPatch: `{"spec":{"mutations":[{"patchType":"JSONPatch","jsonPatch":{"expression":"1"}}]}}`, field: "spec.mutations[0].jsonPatch.expression"},
	{resource: "admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", cluster: true, object: `{kind: ValidatingAdmissionPolicyBinding, spec: {policyName: p, validationActions: [Deny]}}`, badPatch: `{"spec":{"validationActions":["Deny","Warn"]}}`, field: "spec.validationActions"},
	{resource: "admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings", cluster: true, object: `{kind: MutatingAdmissionPolicyBinding, spec: {policyName: p}}`, badPatch: `{"spec":{"policyName":""}}`, field: "spec.policyName"},
	{resource: "v1/limitranges", object: `{kind: LimitRange, spec: {limits: [{type: Container, max: {cpu: "2"}, min: {cpu: "1"}}]}}`, defaulted: map[string]string{"spec.limits.0.default.cpu": "2", "spec.limits.0.defaultRequest.cpu": "2"}, badPatch: `{"spec":{"limits":[{"type":"Container","max":{"cpu":"1"},"min":{"cpu":"3"},"default":{"cpu":"1"},"defaultRequest":{"cpu":"1"}}]}}`, field: "spec.limits[0].min[cpu]"},
	{resource: "v1/resourcequotas", object: `{kind: ResourceQuota, spec: {hard: {configmaps: "1000"}}}`, badPatch: `{"spec":{"hard":{"wishes":"1"}}}`, field: "spec.hard[wishes]"},
	{resource: "v1/podtemplates", object: `{kind: PodTemplate, template: {spec: {containers: [{name: c, image: i}]}}}`, defaulted: map[string]string{"template.spec.dnsPolicy": "ClusterFirst"}, badPatch: `{"template":{"spec":{"dnsPolicy":"Never"}}}`, field: "template.spec.dnsPolicy"},
	{resource: "storagemigration.k8s.io/v1/storageversionmigrations", cluster: true, object: `{kind: StorageVersionMigration, spec: {resource: {group: apps, resource: deployments}}}`, badPatch: `{"spec":{"resource":{"resource":"pods"}}}`, field: "spec"},
}

// testKinds makes, prints, changes and removes an object of each kind.
func testKinds(a *api) {
	for _, c := range kindCases {
		a.Run(strings.ReplaceAll(c.resource, "/", "."), func(t *testing.T) {
			a := a.in(t)
			i := strings.LastIndex(c.resource, "/")
			gv := must(schema.ParseGroupVersion(c.resource[:i]))(t)
			gvr := gv.WithResource(c.resource[i+1:])
			obj := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(c.object), &obj.Object); err != nil {
				t.Fatal(err)
			}
			obj.SetAPIVersion(gv.String())
			name := "kind-" + strings.ToLower(obj.GetKind())
			obj.SetName(name)
			client := a.dynamic.Resource(gvr).Namespace(a.ns)
			if c.cluster {
				client = a.dynamic.Resource(gvr)
			}
			made := must(client.Create(t.Context(), obj, metav1.CreateOptions{FieldValidation: "Strict"}))(t)
			for path, want := range c.defaulted {
				if have := at(made.Object, path); have != want {
					t.Errorf("%s is %q, want %q", path, have, want)
				}
			}
			a.printed(gvr, c.cluster, name)
			if _, err := client.Patch(t.Context(), name, types.MergePatchType, []byte(c.badPatch), metav1.PatchOptions{}); err == nil {
				t.Error("the bad change was taken")
			} else if text := causes(err); !strings.Contains(text, c.field+" ") {
				t.Errorf("refused for %q, want %s: %v", text, c.field, err)
			}
			must(client.Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{}))(t)
			if list := must(client.List(t.Context(), metav1.ListOptions{LabelSelector: "x=y", FieldSelector: "metadata.name=" + name}))(t); len(list.Items) != 1 {
				t.Errorf("%d objects listed by label and name", len(list.Items))
			}
			if err := client.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	a.Run("autoscaling.v1", func(t *testing.T) { testAutoscalerSpellings(a.in(t)) })
	a.Run("trustbundles", func(t *testing.T) {
		a := a.in(t)
		ca := must(os.ReadFile(a.server.CAFile))(t)
		b := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "example.org:s:1"}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: "example.org/s", TrustBundle: string(ca)}}
		user := must(kubernetes.NewForConfig(a.server.As(t, "bundler")))(t)
		grant := func(name string, rules ...rbacv1.PolicyRule) {
			must(a.client.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{}))(t)
			must(a.client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "bundler"}}}, metav1.CreateOptions{}))(t)
		}
		grant("bundles", rbacv1.PolicyRule{APIGroups: []string{certificatesv1.GroupName}, Resources: []string{"clustertrustbundles"}, Verbs: []string{"create"}})
		a.eventually("a refusal that names the signer", func(ctx context.Context) error {
			_, err := user.CertificatesV1().ClusterTrustBundles().Create(ctx, b, metav1.CreateOptions{})
			if err == nil || !strings.Contains(err.Error(), "attest") {
				return fmt.Errorf("made without leave of the signer, or refused for another reason: %w", err)
			}
			return nil
		})
		grant("attests", rbacv1.PolicyRule{APIGroups: []string{certificatesv1.GroupName}, Resources: []string{"signers"}, ResourceNames: []string{"example.org/*"}, Verbs: []string{"attest"}})
		a.eventually("the bundle", func(ctx context.Context) error {
			_, err := user.CertificatesV1().ClusterTrustBundles().Create(ctx, b, metav1.CreateOptions{})
			return err
		})
		b.Name = "other"
		_, err := a.client.CertificatesV1().ClusterTrustBundles().Create(t.Context(), b, metav1.CreateOptions{})
		a.refused(err, 422, "metadata.name")
	})
	a.Run("bindings", func(t *testing.T) {
		a := a.in(t)
		a.makePod("bound")
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "bound"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}
		if err := a.client.CoreV1().RESTClient().Post().Namespace(a.ns).Resource("bindings").Body(b).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
		if p := must(a.client.CoreV1().Pods(a.ns).Get(t.Context(), "bound", metav1.GetOptions{}))(t); p.Spec.NodeName != "n" {
			t.Errorf("bound to %q", p.Spec.NodeName)
		}
	})
	a.Run("servicecidr", func(t *testing.T) {
		a := a.in(t)
		a.eventually("ServiceCIDR kubernetes", func(ctx context.Context) error {
			c, err := a.client.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
			if err == nil && (len(c.Status.Conditions) != 1 || c.Status.Conditions[0].Status != metav1.ConditionTrue || c.Spec.CIDRs[0] != "10.96.0.0/16") {
				err = fmt.Errorf("%+v", c)
			}
			return err
		})
		if _, err := a.client.NetworkingV1().IPAddresses().Get(t.Context(), "10.96.0.1", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// testAutoscalerSpellings writes an autoscaler in one version and reads it in the other.
func testAutoscalerSpellings(a *api) {
	n := int32(55)
	old := &autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "old"}, Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
		MaxReplicas: 4, TargetCPUUtilizationPercentage: &n, ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{Kind: "Deployment", Name: "d", APIVersion: "apps/v1"},
	}}
	must(a.client.AutoscalingV1().HorizontalPodAutoscalers(a.ns).Create(a.Context(), old, metav1.CreateOptions{}))(a)
	v2 := must(a.client.AutoscalingV2().HorizontalPodAutoscalers(a.ns).Get(a.Context(), "old", metav1.GetOptions{}))(a)
	if m := v2.Spec.Metrics; len(m) != 1 || *m[0].Resource.Target.AverageUtilization != 55 || *v2.Spec.MinReplicas != 1 {
		a.Errorf("read as v2: %+v", v2.Spec)
	}
	patch := `{"spec":{"metrics":[{"type":"Resource","resource":{"name":"cpu","target":{"type":"Utilization","averageUtilization":55}}},{"type":"Pods","pods":{"metric":{"name":"m"},"target":{"type":"AverageValue","averageValue":"1"}}}],"behavior":{"scaleDown":{"stabilizationWindowSeconds":5}}}}`
	must(a.client.AutoscalingV2().HorizontalPodAutoscalers(a.ns).Patch(a.Context(), "old", types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(a)
	v1 := must(a.client.AutoscalingV1().HorizontalPodAutoscalers(a.ns).Get(a.Context(), "old", metav1.GetOptions{}))(a)
	if *v1.Spec.TargetCPUUtilizationPercentage != 55 || !strings.Contains(v1.Annotations["autoscaling.alpha.kubernetes.io/metrics"], `"m"`) {
		a.Errorf("read as v1: %+v", v1)
	}
	// A client that knows v1 only keeps what it doesn't know.
	v1.Spec.MaxReplicas = 5
	must(a.client.AutoscalingV1().HorizontalPodAutoscalers(a.ns).Update(a.Context(), v1, metav1.UpdateOptions{}))(a)
	v2 = must(a.client.AutoscalingV2().HorizontalPodAutoscalers(a.ns).Get(a.Context(), "old", metav1.GetOptions{}))(a)
	if len(v2.Spec.Metrics) != 2 || v2.Spec.MaxReplicas != 5 || *v2.Spec.Behavior.ScaleDown.StabilizationWindowSeconds != 5 || len(v2.Annotations) != 0 {
		a.Errorf("after an update of v1: %+v %v", v2.Spec, v2.Annotations)
	}
}

// printed asks for the table of an object, as kubectl does.
func (a *api) printed(gvr schema.GroupVersionResource, cluster bool, name string) {
	a.Helper()
	prefix := "/apis/" + gvr.Group + "/" + gvr.Version
	if gvr.Group == "" {
		prefix = "/api/v1"
	}
	if !cluster {
		prefix += "/namespaces/" + a.ns
	}
	raw := must(a.client.Discovery().RESTClient().Get().AbsPath(prefix, gvr.Resource, name).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(a.Context()))(a)
	var table metav1.Table
	if err := json.Unmarshal(raw, &table); err != nil || len(table.Rows) != 1 || len(table.Rows[0].Cells) != len(table.ColumnDefinitions) || table.Rows[0].Cells[0] != name {
		a.Errorf("table of %s: %v %s", gvr.Resource, err, raw)
	}
}

// at follows a path of names and indexes.
func at(v any, path string) string {
	for _, p := range strings.Split(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[p]
		case []any:
			var i int
			if _, err := fmt.Sscan(p, &i); err != nil || i >= len(x) {
				return ""
			}
			v = x[i]
		}
	}
	return fmt.Sprint(v)
}

func causes(err error) string {
	var out strings.Builder
	if s, ok := err.(apierrors.APIStatus); ok && s.Status().Details != nil {
		for _, c := range s.Status().Details.Causes {
			out.WriteString(c.Field + " ")
		}
	}
	return out.String()
}
