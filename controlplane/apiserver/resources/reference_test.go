package resources

import (
	"strings"
	"testing"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// TestAsTheReference has objects that are wrong, of the groups that the other tables don't go through, and what kube-apiserver says of each: the fields, and what
// is wrong with them.
func TestAsTheReference(t *testing.T) {
	kinds := map[schema.GroupVersionKind]int{}
	for i, r := range All() {
		kinds[r.GroupVersionKind()] = i
	}
	for name, test := range map[string]struct {
		object string
		want   []string
	}{
		"an autoscaler of nothing": {`{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, spec: {maxReplicas: 0}}`,
			[]string{"spec.maxReplicas: Invalid value", "spec.maxReplicas: Invalid value", "spec.scaleTargetRef.kind: Required value", "spec.scaleTargetRef.name: Required value"}},
		"an autoscaler below its least": {`{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, spec: {minReplicas: 5, maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: d}}}`, []string{"spec.maxReplicas: Invalid value"}},
		"metrics of nothing": {`{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, spec: {maxReplicas: 3, scaleTargetRef: {kind: D, name: d}, metrics: [{type: Resource}, {type: Guess}, {type: Pods, pods: {metric: {}, target: {type: AverageValue}}}]}}`,
			[]string{"spec.metrics[0].resource: Required value", "spec.metrics[1].type: Unsupported value", "spec.metrics[2].pods.metric.name: Required value", "spec.metrics[2].pods.target.averageValue: Required value"}},
		"behavior": {`{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, spec: {maxReplicas: 3, scaleTargetRef: {kind: D, name: d}, behavior: {scaleDown: {stabilizationWindowSeconds: 3601, selectPolicy: Most, policies: [{type: Pods, value: 0, periodSeconds: 1801}]}}}}`,
			[]string{"spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value", "spec.behavior.scaleDown.selectPolicy: Unsupported value", "spec.behavior.scaleDown.policies[0].value: Invalid value", "spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value"}},

		"a quota of less than nothing": {`{apiVersion: v1, kind: ResourceQuota, spec: {hard: {pods: "-1", cpu: 1.5}}}`,
			[]string{"spec.hard[pods]: Invalid value"}},
		"a quota of half a pod": {`{apiVersion: v1, kind: ResourceQuota, spec: {hard: {pods: "1500m"}}}`, []string{"spec.hard[pods]: Invalid value"}},
		"a quota of half a device": {`{apiVersion: v1, kind: ResourceQuota, spec: {hard: {example.com/gpu: 500m, count/configmaps: 1500m, requests.example.com/gpu: 500m, kubernetes.io/batteries: 500m, example.com/fpga: 2}}}`,
			[]string{"spec.hard[count/configmaps]: Invalid value", "spec.hard[example.com/gpu]: Invalid value"}},
		"scopes against each other": {`{apiVersion: v1, kind: ResourceQuota, spec: {hard: {services: 1}, scopes: [BestEffort, NotBestEffort, Maybe]}}`,
			[]string{"spec.scopes: Invalid value", "spec.scopes: Invalid value", "spec.scopes: Invalid value", "spec.scopes: Invalid value"}},
		"a selector of scopes": {`{apiVersion: v1, kind: ResourceQuota, spec: {hard: {pods: 1}, scopeSelector: {matchExpressions: [{scopeName: PriorityClass, operator: In}, {scopeName: BestEffort, operator: In, values: [x]}]}}}`,
			[]string{"spec.scopeSelector.matchExpressions.operator: Invalid value", "spec.scopeSelector.matchExpressions.values: Required value"}},
		"limits that contradict": {`{apiVersion: v1, kind: LimitRange, spec: {limits: [{type: Container, min: {cpu: 2}, max: {cpu: 1}, default: {cpu: 3}, defaultRequest: {cpu: "0.5"}}, {type: Container}, {type: Pod, default: {cpu: 1}}, {type: PersistentVolumeClaim}]}}`,
			[]string{"spec.limits[0].default[cpu]: Invalid value", "spec.limits[0].defaultRequest[cpu]: Invalid value", "spec.limits[0].min[cpu]: Invalid value", "spec.limits[1].type: Duplicate value", "spec.limits[2].default: Forbidden", "spec.limits[3].limits: Required value"}},

		"a class that does nothing": {`{apiVersion: storage.k8s.io/v1, kind: StorageClass, provisioner: "", reclaimPolicy: Recycle, volumeBindingMode: Later}`,
			[]string{"provisioner: Required value", "reclaimPolicy: Unsupported value", "volumeBindingMode: Unsupported value"}},
		"topologies": {`{apiVersion: storage.k8s.io/v1, kind: StorageClass, provisioner: p.example, allowedTopologies: [{matchLabelExpressions: [{key: "a b", values: []}, {key: zone, values: [a, a]}]}]}`,
			[]string{"allowedTopologies[0].matchLabelExpressions[0].key: Invalid value", "allowedTopologies[0].matchLabelExpressions[0].values: Required value", "allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value"}},
		"a driver": {`{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: d.example}, spec: {fsGroupPolicy: Sometimes, volumeLifecycleModes: [Forever], tokenRequests: [{audience: a, expirationSeconds: 1}, {audience: a}]}}`,
			[]string{"spec.fsGroupPolicy: Unsupported value", "spec.tokenRequests[0].expirationSeconds: Invalid value", "spec.tokenRequests[1].audience: Duplicate value", "spec.volumeLifecycleModes: Unsupported value"}},
		"a node's drivers": {`{apiVersion: storage.k8s.io/v1, kind: CSINode, spec: {drivers: [{name: "", nodeID: ""}, {name: d, nodeID: n, allocatable: {count: -1}}, {name: d, nodeID: n}]}}`,
			[]string{"spec.drivers[0].name: Required value", "spec.drivers[0].nodeID: Required value", "spec.drivers[1].allocatable.count: Invalid value", "spec.drivers[2].name: Duplicate value"}},
		"capacity of no class": {`{apiVersion: storage.k8s.io/v1, kind: CSIStorageCapacity, capacity: -1}`, []string{"capacity: Invalid value", "storageClassName: Invalid value"}},
		"an attachment":        {`{apiVersion: storage.k8s.io/v1, kind: VolumeAttachment, spec: {source: {}}}`, []string{"spec.attacher: Required value", "spec.nodeName: Required value", "spec.source: Required value"}},

		"a claim to devices": {`{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, spec: {devices: {requests: [{name: A_}, {name: a, exactly: {}}, {name: a, exactly: {deviceClassName: c, allocationMode: ExactCount, count: -1}}, {name: b, exactly: {deviceClassName: c, allocationMode: All, count: 2}}]}}}`,
			[]string{"spec.devices.requests[0].name: Invalid value", "spec.devices.requests[0]: Required value", "spec.devices.requests[1].exactly.deviceClassName: Required value", "spec.devices.requests[2].name: Duplicate value", "spec.devices.requests[2].exactly.count: Invalid value", "spec.devices.requests[3].exactly.count: Invalid value"}},
		"constraints": {`{apiVersion: resource.k8s.io/v1, kind: ResourceClaim, spec: {devices: {requests: [{name: a, exactly: {deviceClassName: c}}], constraints: [{requests: [b]}, {matchAttribute: nodomain}]}}}`,
			[]string{"spec.devices.constraints[0].requests[0]: Invalid value", "spec.devices.constraints[0]: Required value", "spec.devices.constraints[1].matchAttribute: Invalid value"}},
		"a slice of nowhere": {`{apiVersion: resource.k8s.io/v1, kind: ResourceSlice, spec: {driver: d.example, pool: {name: p, resourceSliceCount: 0, generation: -1}}}`,
			[]string{"spec: Required value", "spec.pool.resourceSliceCount: Invalid value", "spec.pool.generation: Invalid value"}},
		"devices of one name": {`{apiVersion: resource.k8s.io/v1, kind: ResourceSlice, spec: {driver: d.example, nodeName: n, pool: {name: p, resourceSliceCount: 1}, devices: [{name: d, attributes: {a: {}}}, {name: d, attributes: {a: {int: 1, bool: true}}}]}}`,
			[]string{"spec.devices[0].attributes[a]: Invalid value", "spec.devices[1].attributes[a]: Invalid value", "spec.devices[1].name: Duplicate value"}},

		"attributes that are lists": {`{apiVersion: resource.k8s.io/v1, kind: ResourceSlice, spec: {driver: d.example, nodeName: n, pool: {name: p, resourceSliceCount: 1}, devices: [{name: d, attributes: {i: {ints: [1, 2]}, s: {strings: [a, ` + strings.Repeat("x", 65) + `]}, v: {versions: [1.2.3, one]}}}, {name: e, attributes: {b: {bools: [` + strings.Repeat("true, ", 47) + `true]}, i: {int: 1}}}]}}`,
			[]string{"spec.devices[0].attributes[s].strings[1]: Too long", "spec.devices[0].attributes[v].versions[1]: Invalid value", "spec.devices[1].attributes: Invalid value"}},

		"a webhook": {`{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, webhooks: [{name: short, timeoutSeconds: 31, failurePolicy: Hope, clientConfig: {}, rules: [{operations: ["*", CREATE], apiGroups: [], apiVersions: [v1], resources: [pods]}]}]}`,
			[]string{"webhooks[0].admissionReviewVersions: Required value", "webhooks[0].clientConfig: Required value", "webhooks[0].failurePolicy: Unsupported value", "webhooks[0].name: Invalid value", "webhooks[0].rules[0].apiGroups: Required value", "webhooks[0].rules[0].operations: Invalid value", "webhooks[0].sideEffects: Required value", "webhooks[0].timeoutSeconds: Invalid value"}},
		"a webhook of two places": {`{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, webhooks: [{name: a.b.c, sideEffects: Some, admissionReviewVersions: [v1], clientConfig: {url: "https://u:p@h/?q#f", service: {name: s, namespace: n, path: "a"}}, reinvocationPolicy: Always}]}`,
			[]string{"webhooks[0].clientConfig: Required value", "webhooks[0].reinvocationPolicy: Unsupported value", "webhooks[0].sideEffects: Unsupported value"}},
		"a policy of nothing": {`{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, spec: {}}`, []string{"spec.matchConstraints: Required value", "spec.validations: Required value"}},
		"a policy": {`{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: p}, spec: {paramKind: {}, matchConstraints: {resourceRules: []}, validations: [{expression: " ", reason: Because}], auditAnnotations: [{key: "a b", valueExpression: "1"}]}}`,
			[]string{"spec.auditAnnotations[0].key: Invalid value", "spec.auditAnnotations[0].valueExpression: Invalid value", "spec.matchConstraints.resourceRules: Required value", "spec.paramKind.apiVersion: Required value", "spec.paramKind.kind: Required value", "spec.validations[0].expression: Required value", "spec.validations[0].reason: Unsupported value"}},
		"a binding of a policy": {`{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, spec: {validationActions: [Pray], paramRef: {}}}`,
			[]string{"spec.paramRef: Required value", "spec.paramRef.parameterNotFoundAction: Required value", "spec.policyName: Required value", "spec.validationActions[0]: Unsupported value"}},

		"flows of nobody": {`{apiVersion: flowcontrol.apiserver.k8s.io/v1, kind: FlowSchema, spec: {matchingPrecedence: 10001, distinguisherMethod: {type: ByHat}, rules: [{}]}}`,
			[]string{"spec.distinguisherMethod.type: Unsupported value", "spec.matchingPrecedence: Invalid value", "spec.priorityLevelConfiguration.name: Required value", "spec.rules[0]: Required value", "spec.rules[0].subjects: Required value"}},
		"subjects of flows": {`{apiVersion: flowcontrol.apiserver.k8s.io/v1, kind: FlowSchema, spec: {matchingPrecedence: 10, priorityLevelConfiguration: {name: p}, rules: [{subjects: [{kind: Hat}, {kind: User}, {kind: ServiceAccount, serviceAccount: {name: "*", namespace: ""}}], resourceRules: [{verbs: ["*", get], apiGroups: [], resources: [pods]}], nonResourceRules: [{verbs: [get], nonResourceURLs: ["a"]}]}]}}`,
			[]string{"spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value", "spec.rules[0].resourceRules[0].apiGroups: Required value", "spec.rules[0].resourceRules[0].namespaces: Required value", "spec.rules[0].resourceRules[0].verbs: Invalid value", "spec.rules[0].subjects[0].kind: Unsupported value", "spec.rules[0].subjects[1].user: Required value", "spec.rules[0].subjects[2].serviceAccount.namespace: Required value"}},
		"a user with an account": {`{apiVersion: flowcontrol.apiserver.k8s.io/v1, kind: FlowSchema, spec: {matchingPrecedence: 10, priorityLevelConfiguration: {name: p}, rules: [{subjects: [{kind: User, user: {name: u}, serviceAccount: {name: a}}], nonResourceRules: [{verbs: [get], nonResourceURLs: [/a]}]}]}}`,
			[]string{"spec.rules[0].subjects[0].serviceAccount: Forbidden"}},
		"a level": {`{apiVersion: flowcontrol.apiserver.k8s.io/v1, kind: PriorityLevelConfiguration, spec: {type: Limited, limited: {nominalConcurrencyShares: -1, lendablePercent: 101, limitResponse: {type: Queue}}}}`,
			[]string{"spec.limited.lendablePercent: Invalid value", "spec.limited.limitResponse.queuing: Required value", "spec.limited.nominalConcurrencyShares: Invalid value"}},

		"three ranges":                {`{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, spec: {cidrs: [10.0.0.0/8, 10.1.0.0/24, fd00::/64]}}`, []string{"spec.cidrs: Too many"}},
		"two ranges of one family":    {`{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, spec: {cidrs: [10.0.0.0/24, 10.0.1.0/24]}}`, []string{"spec.cidrs: Invalid value"}},
		"a range with bits of a host": {`{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, spec: {cidrs: [10.0.0.1/24]}}`, []string{"spec.cidrs[0]: Invalid value"}},
		"no range":                    {`{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, spec: {}}`, []string{"spec.cidrs: Required value"}},
		"an address of nobody":        {`{apiVersion: networking.k8s.io/v1, kind: IPAddress, metadata: {name: 10.0.0.1}, spec: {}}`, []string{"spec.parentRef: Required value"}},
		"a class of runtimes": {`{apiVersion: node.k8s.io/v1, kind: RuntimeClass, handler: A_, overhead: {podFixed: {memory: "-1"}}, scheduling: {tolerations: [{operator: Like, key: k}], nodeSelector: {"a b": c}}}`,
			[]string{"handler: Invalid value", "overhead.podFixed.limits[memory]: Invalid value", "scheduling.nodeSelector: Invalid value", "scheduling.tolerations[0].operator: Unsupported value"}},

		"a Job": {`{apiVersion: batch/v1, kind: Job, spec: {parallelism: -1, completions: -1, backoffLimit: -1, activeDeadlineSeconds: -1, ttlSecondsAfterFinished: -1, completionMode: Odd, template: {spec: {restartPolicy: Always, containers: [{name: c, image: i}]}}}}`,
			[]string{"spec.activeDeadlineSeconds: Invalid value", "spec.backoffLimit: Invalid value", "spec.completionMode: Unsupported value", "spec.completions: Invalid value", "spec.parallelism: Invalid value", "spec.template.spec.restartPolicy: Required value", "spec.ttlSecondsAfterFinished: Invalid value"}},
		"an indexed Job": {`{apiVersion: batch/v1, kind: Job, spec: {completionMode: Indexed, maxFailedIndexes: 1, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}`,
			[]string{"spec.backoffLimitPerIndex: Required value"}},
		"a CronJob": {`{apiVersion: batch/v1, kind: CronJob, spec: {schedule: "* * *", concurrencyPolicy: Sometimes, timeZone: Mars/Base, startingDeadlineSeconds: -1, successfulJobsHistoryLimit: -1, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}`,
			[]string{"spec.concurrencyPolicy: Unsupported value", "spec.schedule: Invalid value", "spec.startingDeadlineSeconds: Invalid value", "spec.successfulJobsHistoryLimit: Invalid value", "spec.timeZone: Invalid value"}},
		"a signing request": {`{apiVersion: certificates.k8s.io/v1, kind: CertificateSigningRequest, spec: {signerName: nodomain, request: eA==, expirationSeconds: 1}}`,
			[]string{"spec.expirationSeconds: Invalid value", "spec.request: Invalid value", "spec.signerName: Invalid value", "spec.usages: Required value"}},
		"a bundle of trust": {`{apiVersion: certificates.k8s.io/v1, kind: ClusterTrustBundle, metadata: {name: x}, spec: {trustBundle: no PEM}}`, []string{"spec.trustBundle: Invalid value"}},
		"a controller":      {`{apiVersion: v1, kind: ReplicationController, spec: {replicas: -1, minReadySeconds: -1}}`, []string{"spec.minReadySeconds: Invalid value", "spec.replicas: Invalid value", "spec.selector: Required value", "spec.template: Required value"}},
	} {
		t.Run(name, func(t *testing.T) {
			var head struct{ APIVersion, Kind string }
			if err := yaml.Unmarshal([]byte(test.object), &head); err != nil {
				t.Fatal(err)
			}
			i, ok := kinds[schema.FromAPIVersionAndKind(head.APIVersion, head.Kind)]
			if !ok {
				t.Fatalf("no kind %+v", head)
			}
			obj := All()[i].New()
			if err := yaml.UnmarshalStrict([]byte(test.object), obj); err != nil {
				t.Fatal(err)
			}
			refused(t, obj, test.want...)
		})
	}
}

// What an older server took of claims to devices can't be mended, as their spec never changes; it must stay possible to let it go.
func TestClaimsOfAnOlderServerCanGo(t *testing.T) {
	wrong := resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{Name: "A_"}}}}
	for _, old := range []interface {
		metav1.Object
		runtime.Object
	}{&resourcev1.ResourceClaim{Spec: wrong}, &resourcev1.ResourceClaimTemplate{Spec: resourcev1.ResourceClaimTemplateSpec{Spec: wrong}}} {
		old.SetName("old")
		old.SetNamespace("default")
		old.SetResourceVersion("1")
		old.SetFinalizers([]string{"example.com/holds"})
		r := of(t, old)
		if errs := r.Validate(old); len(errs) == 0 {
			t.Errorf("a new %s is taken", r.Kind)
		}
		let := old.DeepCopyObject()
		let.(metav1.Object).SetFinalizers(nil)
		if r.Revalidate == nil {
			t.Fatalf("%s is judged as if it were new", r.Kind)
		}
		if errs := append(r.Revalidate(let, old), r.ValidateUpdate(let, old)...); len(errs) > 0 {
			t.Errorf("%s: %v", r.Kind, errs.ToAggregate())
		}
	}
}
