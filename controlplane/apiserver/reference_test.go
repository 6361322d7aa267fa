package apiserver_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reference is what kube-apiserver 1.37 serves with its default settings: resources with their subresources, by group
// version. Betas that are off by default and aliases of older versions are left out.
var reference = map[string]map[string]string{
	"v1": {
		"bindings": "", "componentstatuses": "", "configmaps": "", "endpoints": "", "events": "", "limitranges": "", "namespaces": "finalize status",
		"nodes": "proxy status", "persistentvolumeclaims": "status", "persistentvolumes": "status",
		"pods": "attach binding ephemeralcontainers eviction exec log portforward proxy resize status", "podtemplates": "", "replicationcontrollers": "scale status",
		"resourcequotas": "status", "secrets": "", "serviceaccounts": "token", "services": "proxy status",
	},
	"admissionregistration.k8s.io/v1": {
		"mutatingadmissionpolicies": "", "mutatingadmissionpolicybindings": "", "mutatingwebhookconfigurations": "", "validatingadmissionpolicies": "status",
		"validatingadmissionpolicybindings": "", "validatingwebhookconfigurations": "",
	},
	"apiextensions.k8s.io/v1":         {"customresourcedefinitions": "status"},
	"apiregistration.k8s.io/v1":       {"apiservices": "status"},
	"apps/v1":                         {"controllerrevisions": "", "daemonsets": "status", "deployments": "scale status", "replicasets": "scale status", "statefulsets": "scale status"},
	"authentication.k8s.io/v1":        {"selfsubjectreviews": "", "tokenreviews": ""},
	"authorization.k8s.io/v1":         {"localsubjectaccessreviews": "", "selfsubjectaccessreviews": "", "selfsubjectrulesreviews": "", "subjectaccessreviews": ""},
	"autoscaling/v1":                  {"horizontalpodautoscalers": "status"},
	"autoscaling/v2":                  {"horizontalpodautoscalers": "status"},
	"batch/v1":                        {"cronjobs": "status", "jobs": "status"},
	"certificates.k8s.io/v1":          {"certificatesigningrequests": "approval status", "clustertrustbundles": "", "podcertificaterequests": "status"},
	"coordination.k8s.io/v1":          {"leases": ""},
	"discovery.k8s.io/v1":             {"endpointslices": ""},
	"events.k8s.io/v1":                {"events": ""},
	"flowcontrol.apiserver.k8s.io/v1": {"flowschemas": "status", "prioritylevelconfigurations": "status"},
	"networking.k8s.io/v1":            {"ingressclasses": "", "ingresses": "status", "ipaddresses": "", "networkpolicies": "", "servicecidrs": "status"},
	"node.k8s.io/v1":                  {"runtimeclasses": ""},
	"policy/v1":                       {"poddisruptionbudgets": "status"},
	"rbac.authorization.k8s.io/v1":    {"clusterrolebindings": "", "clusterroles": "", "rolebindings": "", "roles": ""},
	"resource.k8s.io/v1":              {"deviceclasses": "", "devicetaintrules": "status", "resourceclaims": "status", "resourceclaimtemplates": "", "resourceslices": ""},
	"scheduling.k8s.io/v1":            {"priorityclasses": ""},
	"storage.k8s.io/v1": {
		"csidrivers": "", "csinodes": "", "csistoragecapacities": "", "storageclasses": "", "volumeattachments": "status", "volumeattributesclasses": "",
	},
	"storagemigration.k8s.io/v1": {"storageversionmigrations": "status"},
}

// gaps are served, but not as the reference does it, or with nobody that acts on them.
var gaps = map[string]string{
	"v1 pods":                                             "what a whole pod is given (spec.resources) can't be resized",
	"v1 persistentvolumes":                                "bound, made for claims as local folders, mounted where they are local or hostPath; no CSI drivers, no block devices",
	"networking.k8s.io/v1 ingresses":                      "no controller acts on them: bring an ingress controller",
	"resource.k8s.io/v1 resourceclaims":                   "stored; scheduler and kubelet don't allocate devices",
	"resource.k8s.io/v1 resourceclaimtemplates":           "no controller makes claims of them",
	"resource.k8s.io/v1 devicetaintrules":                 "no controller evicts by them",
	"certificates.k8s.io/v1 podcertificaterequests":       "stored; the kubelet has no podCertificate volumes",
	"storage.k8s.io/v1 volumeattachments":                 "no controller attaches volumes",
	"storage.k8s.io/v1 volumeattributesclasses":           "no controller changes volumes",
	"storagemigration.k8s.io/v1 storageversionmigrations": "stored; no controller rewrites objects",
}

// testTableOfTheAPI keeps docs/api.md what discovery says; UPDATE=1 writes it anew.
func testTableOfTheAPI(a *api) {
	served := map[string]map[string]metav1.APIResource{}
	lists := must(a.client.Discovery().ServerResourcesForGroupVersion("v1"))(a)
	all := []*metav1.APIResourceList{lists}
	for gv := range reference {
		if gv == "v1" {
			continue
		}
		list, err := a.client.Discovery().ServerResourcesForGroupVersion(gv)
		if err != nil {
			continue // told as absent below
		}
		all = append(all, list)
	}
	for _, l := range all {
		served[l.GroupVersion] = map[string]metav1.APIResource{}
		for _, r := range l.APIResources {
			served[l.GroupVersion][r.Name] = r
		}
	}
	var b bytes.Buffer
	b.WriteString("# The API, resource by resource\n\nWhat is served beside what kube-apiserver 1.37 serves with its default settings. This table is compared with a running server's\ndiscovery by `controlplane/apiserver` TestAPI/table, which fails when it is not true; `UPDATE=1` writes it anew.\n\"whole\" means served, defaulted, validated and acted upon; what is less says so.\n\n| resource | subresources | verbs | state |\n|---|---|---|---|\n")
	unknownGaps := map[string]bool{}
	for name := range gaps {
		unknownGaps[name] = true
	}
	for _, gv := range sortedKeys(reference) {
		for _, name := range sortedKeys(reference[gv]) {
			r, ok := served[gv][name]
			state := "whole"
			if !ok {
				state = "absent"
			}
			var subs, missing []string
			for _, sub := range strings.Fields(reference[gv][name]) {
				if _, ok := served[gv][name+"/"+sub]; ok {
					subs = append(subs, sub)
				} else {
					missing = append(missing, sub)
				}
			}
			for have := range served[gv] {
				if sub, is := strings.CutPrefix(have, name+"/"); is && !slices.Contains(subs, sub) {
					a.Errorf("%s %s is served, but not by the reference", gv, have)
				}
			}
			var notes []string
			if len(missing) > 0 && ok {
				notes = append(notes, "without "+strings.Join(missing, ", "))
			}
			if gap := gaps[gv+" "+name]; gap != "" && ok {
				notes = append(notes, gap)
				delete(unknownGaps, gv+" "+name)
			}
			if len(notes) > 0 {
				state = "partly: " + strings.Join(notes, "; ")
			}
			verbs := slices.Clone([]string(r.Verbs))
			slices.Sort(verbs)
			text := strings.Join(verbs, " ")
			if text == "create delete deletecollection get list patch update watch" {
				text = "all"
			}
			fmt.Fprintf(&b, "| %s %s | %s | %s | %s |\n", gv, name, strings.Join(subs, " "), text, state)
		}
	}
	for name := range unknownGaps {
		a.Errorf("%s: a gap of what is not served", name)
	}
	const path = "../../docs/api.md"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			a.Fatal(err)
		}
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, b.Bytes()) {
		a.Errorf("%s does not say what the server serves (%v); UPDATE=1 go test -run TestAPI/table writes it anew", path, err)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
