package autoscaler

import (
	"fmt"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/utils/ptr"
)

func rules(window int32, chosen autoscalingv2.ScalingPolicySelect, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	return &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &window, SelectPolicy: &chosen, Policies: policies}
}

func byPods(n, seconds int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: n, PeriodSeconds: seconds}
}

func byPercent(n, seconds int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: n, PeriodSeconds: seconds}
}

func TestLimit(t *testing.T) {
	const most, least, disabled = autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect
	for name, c := range map[string]struct {
		up, down         *autoscalingv2.HPAScalingRules
		changes          []dated // by how many, so long ago
		current, desired int32
		want             string
	}{
		"as wished":                        {nil, nil, nil, 10, 12, "12 DesiredWithinRange"},
		"doubled at most":                  {nil, nil, nil, 10, 30, "20 ScaleUpLimit"},
		"four more at least":               {nil, nil, nil, 1, 30, "5 ScaleUpLimit"},
		"no more than may be":              {rules(0, most, byPercent(900, 15)), nil, nil, 50, 200, "100 TooManyReplicas"},
		"no fewer than may be":             {nil, nil, nil, 10, 0, "2 TooFewReplicas"},
		"what came in the period counts":   {rules(0, most, byPods(4, 60)), nil, []dated{{3, now.Add(-30 * time.Second)}}, 10, 20, "11 ScaleUpLimit"},
		"what came before it doesn't":      {rules(0, most, byPods(4, 60)), nil, []dated{{3, now.Add(-90 * time.Second)}}, 10, 20, "14 ScaleUpLimit"},
		"what went makes room":             {rules(0, most, byPods(4, 60)), nil, []dated{{-2, now.Add(-30 * time.Second)}}, 10, 20, "16 ScaleUpLimit"},
		"the policy that allows most":      {rules(0, most, byPods(4, 60), byPercent(10, 60)), nil, nil, 80, 100, "88 ScaleUpLimit"},
		"the policy that allows least":     {rules(0, least, byPods(4, 60), byPercent(10, 60)), nil, nil, 80, 100, "84 ScaleUpLimit"},
		"none":                             {rules(0, disabled, byPods(4, 60)), nil, nil, 10, 20, "10 ScaleUpLimit"},
		"per cent are rounded up":          {rules(0, most, byPercent(10, 60)), nil, nil, 11, 20, "13 ScaleUpLimit"},
		"down by per cent":                 {nil, rules(0, most, byPercent(10, 60)), nil, 80, 10, "72 ScaleDownLimit"},
		"down by the policy that is least": {nil, rules(0, least, byPercent(10, 60), byPods(5, 60)), nil, 80, 10, "75 ScaleDownLimit"},
		"down by the one that is most":     {nil, rules(0, most, byPercent(10, 60), byPods(5, 60)), nil, 80, 10, "72 ScaleDownLimit"},
		"down: what went counts":           {nil, rules(0, most, byPods(5, 60)), []dated{{-3, now.Add(-30 * time.Second)}}, 80, 10, "78 ScaleDownLimit"},
		"down: never":                      {nil, rules(0, disabled, byPods(5, 60)), nil, 80, 10, "80 ScaleDownLimit"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &autoscalingv2.HorizontalPodAutoscaler{}
			if c.up != nil || c.down != nil {
				h.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: c.up, ScaleDown: c.down}
			}
			p := &past{changes: c.changes}
			n, why := p.limit(c.current, c.desired, 2, 100, behaviorOf(h), now)
			if got := fmt.Sprint(n, " ", why.reason); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Wishes are told second by second; what is done lags behind them as the windows say.
func TestStabilize(t *testing.T) {
	for name, c := range map[string]struct {
		behavior *autoscalingv2.HorizontalPodAutoscalerBehavior
		wishes   map[int]int32 // by second
		want     string
	}{
		"up at once, down after five minutes": {nil, map[int]int32{0: 5, 15: 8, 30: 3, 300: 3, 330: 3}, "0:5 15:8 30:8 300:8 330:3"},
		"the highest of a window":             {nil, map[int]int32{0: 9, 100: 6, 200: 3, 350: 3, 450: 3, 550: 3}, "0:9 100:9 200:9 350:6 450:3 550:3"},
		"the lowest on the way up": {&autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules(60, autoscalingv2.MaxChangePolicySelect, byPods(100, 15)), ScaleDown: rules(0, autoscalingv2.MaxChangePolicySelect, byPercent(100, 15))},
			map[int]int32{0: 2, 15: 9, 45: 7, 70: 9, 90: 9}, "0:2 15:2 45:2 70:7 90:7"},
		"no window": {&autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: rules(0, autoscalingv2.MaxChangePolicySelect, byPercent(100, 15))}, map[int]int32{0: 9, 15: 2}, "0:9 15:2"},
	} {
		t.Run(name, func(t *testing.T) {
			b := behaviorOf(&autoscalingv2.HorizontalPodAutoscaler{Spec: autoscalingv2.HorizontalPodAutoscalerSpec{Behavior: c.behavior}})
			p, current, got := &past{}, c.wishes[0], ""
			for second := range 600 {
				wish, ok := c.wishes[second]
				if !ok {
					continue
				}
				current, _ = p.stabilize(current, wish, b, now.Add(time.Duration(second)*time.Second))
				if got != "" {
					got += " "
				}
				got += fmt.Sprintf("%d:%d", second, current)
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Changes that no policy looks at any more are forgotten.
func TestChangesAreForgotten(t *testing.T) {
	b := autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules(0, autoscalingv2.MaxChangePolicySelect, byPods(1, 15)), ScaleDown: rules(0, autoscalingv2.MaxChangePolicySelect, byPods(1, 60))}
	p := &past{}
	for i := range 10 {
		p.changed(1, b, now.Add(time.Duration(i)*20*time.Second))
	}
	if len(p.changes) != 3 {
		t.Errorf("%d changes are kept", len(p.changes))
	}
	if ptr.Deref(usual.ScaleUp.StabilizationWindowSeconds, 1) != 0 {
		t.Error("the usual rules were changed")
	}
}
