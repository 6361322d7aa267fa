package rbac

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// TestReference holds the default roles and bindings against those of the reference, right by right.
func TestReference(t *testing.T) {
	want, err := readDefaults("testdata/defaults.txt")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string][]string{}
	for _, r := range clusterRoles() {
		have["role "+r.Name] = rights(r.Rules)
		if r.AggregationRule != nil {
			for _, s := range r.AggregationRule.ClusterRoleSelectors {
				for l, v := range s.MatchLabels {
					have["role "+r.Name] = append(have["role "+r.Name], "sum of "+l+"="+v)
				}
			}
		}
		for l, v := range r.Labels {
			if l != "kubernetes.io/bootstrapping" {
				have["role "+r.Name] = append(have["role "+r.Name], "part of "+l+"="+v)
			}
		}
	}
	for _, r := range roles() {
		have["role "+r.Namespace+"/"+r.Name] = rights(r.Rules)
	}
	bound := func(ref rbacv1.RoleRef, subjects []rbacv1.Subject) []string {
		lines := []string{"to " + ref.Kind + " " + ref.Name}
		for _, s := range subjects {
			lines = append(lines, fmt.Sprintf("%s %s %s %s", s.Kind, s.APIGroup, s.Namespace, s.Name))
		}
		return lines
	}
	for _, b := range clusterRoleBindings() {
		have["bind "+b.Name] = bound(b.RoleRef, b.Subjects)
	}
	for _, b := range roleBindings() {
		have["bind "+b.Namespace+"/"+b.Name] = bound(b.RoleRef, b.Subjects)
	}
	for name, lines := range want {
		got, ok := have[name]
		if !ok {
			t.Errorf("%s is missing", name)
			continue
		}
		slices.Sort(lines)
		slices.Sort(got)
		lines, got = slices.Compact(lines), slices.Compact(got)
		for _, l := range lines {
			if !slices.Contains(got, l) {
				t.Errorf("%s lacks %q", name, l)
			}
		}
		for _, l := range got {
			if !slices.Contains(lines, l) {
				t.Errorf("%s has %q, which the reference's hasn't", name, l)
			}
		}
	}
	ours := []string{"bind system:kubelet-api-admin", "bind system:node-bootstrapper", "bind " + nodeClient, "bind " + selfNodeClient}
	for name := range have {
		if _, ok := want[name]; !ok && !strings.Contains(name, "strake:") && !slices.Contains(ours, name) {
			t.Errorf("the reference has no %s", name)
		}
	}
}

// rights writes rules out, each verb on each resource.
func rights(rules []rbacv1.PolicyRule) []string {
	var lines []string
	for _, r := range rules {
		for _, verb := range r.Verbs {
			for _, u := range r.NonResourceURLs {
				lines = append(lines, verb+" "+u)
			}
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					names := r.ResourceNames
					if len(names) == 0 {
						names = []string{"of any name"}
					}
					for _, n := range names {
						lines = append(lines, fmt.Sprintf("%s %s in %q %s", verb, resource, group, n))
					}
				}
			}
		}
	}
	return lines
}

// readDefaults reads the list that the file's head explains.
func readDefaults(file string) (map[string][]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	defaults, role := map[string][]string{}, ""
	for i, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || strings.HasPrefix(line, "#"):
		case f[0] == "role":
			role = "role " + f[1]
			defaults[role] = []string{}
			for _, l := range f[2:] {
				kind, to, _ := strings.Cut(l, "=")
				defaults[role] = append(defaults[role], kind+" of rbac.authorization.k8s.io/aggregate-to-"+to+"=true")
			}
		case f[0] == "bind":
			head, who, _ := strings.Cut(strings.TrimPrefix(line, "bind "), ": ")
			head = strings.TrimSuffix(head, ":")
			name, ref, namespaced := strings.Cut(head, " ")
			lines := []string{"to ClusterRole " + name}
			if namespaced {
				lines[0] = "to Role " + ref
			}
			for _, s := range strings.Fields(who) {
				kind, n, _ := strings.Cut(s, "/")
				lines = append(lines, map[string]string{
					"group": "Group rbac.authorization.k8s.io  ", "user": "User rbac.authorization.k8s.io  ", "account": "ServiceAccount  kube-system ",
				}[kind]+n)
			}
			defaults["bind "+name] = lines
		case len(f) < 3:
			return nil, fmt.Errorf("%s:%d: %q is no rule", file, i+1, line)
		case f[1] == "urls":
			defaults[role] = append(defaults[role], rights([]rbacv1.PolicyRule{{Verbs: strings.Split(f[0], ","), NonResourceURLs: strings.Split(f[2], ",")}})...)
		default:
			r := rbacv1.PolicyRule{Verbs: strings.Split(f[0], ","), APIGroups: strings.Split(strings.ReplaceAll(f[1], "core", ""), ","), Resources: strings.Split(f[2], ",")}
			if len(f) == 4 {
				r.ResourceNames = strings.Split(f[3], ",")
			}
			defaults[role] = append(defaults[role], rights([]rbacv1.PolicyRule{r})...)
		}
	}
	return defaults, nil
}
